"""Duplicates: pairs that were left out because another pair, which was kept, has their picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

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


@dataclass(frozen=True, slots=True)
class DuplicateInfo:
    """What a dedup run found; `exact` + `near` pairs were left out.

    `clusters` pairs were kept that stand for others, the one with the most for `largest` - 1 of
    them. `chains` components of near pairs were found, `longest` pairs in the longest. `search`
    says how near pairs were searched for and what share of them is found; None if they were not.
    """

    exact: int
    near: int
    clusters: int
    largest: int
    chains: int
    longest: int
    search: dict[str, Any] | None
    shards: list[ShardInfo]

    @property
    def count(self) -> int:
        """How many pairs were left out."""
        return self.exact + self.near


def duplicates_from_json(fields: Mapping[str, Any]) -> DuplicateInfo:
    """The description as it stands in a manifest.

    Raises:
        KeyError, TypeError: a field is missing or unknown.
    """
    nested: dict[str, Any] = {"shards": [ShardInfo(**s) for s in fields["shards"]]}
    return DuplicateInfo(**{**fields, **nested})
