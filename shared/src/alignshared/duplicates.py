"""Duplicates: pairs left out because a kept pair has the same or nearly the same image."""

from enum import StrEnum
from typing import Any

import pyarrow as pa
from pydantic.dataclasses import dataclass

from alignshared.schema import CONTRACT, Count
from alignshared.shards import ShardInfo

DUPLICATES_FOLDER = "duplicates"


class Likeness(StrEnum):
    """Kind of duplicate: identical image bytes, or near-identical embeddings."""

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
"""One row per pair left out: its id, the id of the pair kept instead, the cosine of their image
embeddings (1 for equal bytes) and a value of `Likeness`.
"""


@dataclass(frozen=True, slots=True, config=CONTRACT)
class DuplicateInfo:
    """Result of a dedup run; `exact` + `near` pairs were left out.

    `clusters` kept pairs represent others, the largest representing `largest` - 1. Near pairs form
    `chains` components, the longest with `longest` pairs. `search` records the method and recall of
    the near-duplicate search; None if there was none.
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
        """Number of pairs left out."""
        return self.exact + self.near
