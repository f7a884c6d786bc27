"""Duplicates: pairs that were left out because another pair, which was kept, has their picture."""

from enum import StrEnum
from typing import Any

import pyarrow as pa
from pydantic.dataclasses import dataclass

from alignshared.schema import CONTRACT, Count
from alignshared.shards import ShardInfo

DUPLICATES_FOLDER = "duplicates"


class Likeness(StrEnum):
    """How a pair is like the one that was kept: the same bytes of picture, or near it."""

    EXACT = "exact"
    NEAR = "near"


DUPLICATE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kept_id", pa.string()),
        ("cosine", pa.float32()),
        ("kind", pa.string()),
    ]
)
"""A row for each pair that was left out: its id, the id of the pair that stands for it, the cosine
of their image embeddings (1 for equal bytes), and a word of `Likeness`.
"""


@dataclass(frozen=True, slots=True, config=CONTRACT)
class DuplicateInfo:
    """What a dedup run found; `exact` + `near` pairs were left out.

    `clusters` pairs were kept that stand for others, the one with the most for `largest` - 1 of
    them. `chains` components of near pairs were found, `longest` pairs in the longest. `search`
    says how near pairs were searched for and what share of them is found; None if they were not.
    """

    exact: Count
    near: Count
    clusters: Count
    largest: Count
    chains: Count
    longest: Count
    search: dict[str, Any] | None
    shards: list[ShardInfo]

    @property
    def count(self) -> int:
        """How many pairs were left out."""
        return self.exact + self.near
