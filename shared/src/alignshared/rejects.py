"""Rows stored beside the shards: unusable pairs with the reason, and duplicates left out."""

from enum import StrEnum

import pyarrow as pa
from pydantic.dataclasses import dataclass

from alignshared.schema import CONTRACT


class Reason(StrEnum):
    """Reason for a reject; the values are part of the contract."""

    MALFORMED_RECORD = "malformed_record"
    NO_IMAGE = "no_image"
    MISSING_FILE = "missing_file"
    PATH_OUTSIDE_ROOT = "path_outside_root"
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    CORRUPT_IMAGE = "corrupt_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    NO_CAPTION = "no_caption"
    EMPTY_CAPTION = "empty_caption"
    INVALID_UTF8 = "invalid_utf8"
    DUPLICATE_ID = "duplicate_id"
    DAMAGED_ARCHIVE = "damaged_archive"
    NON_FINITE_SCORE = "non_finite_score"
    UNIT_FAILED = "unit_failed"


REJECT_SCHEMA = pa.schema(
    [("id", pa.string()), ("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)


@dataclass(frozen=True, slots=True, config=CONTRACT)
class Reject:
    """One rejected pair: its id, the source of its image, and the reason."""

    id: str
    path: str | None
    reason: Reason
    detail: str


def rejects_table(rejects: list[Reject]) -> pa.Table:
    """The rejects as an Arrow table of REJECT_SCHEMA."""
    return pa.Table.from_pylist(
        [
            {"id": r.id, "path": r.path, "reason": r.reason.value, "detail": r.detail}
            for r in rejects
        ],
        schema=REJECT_SCHEMA,
    )


DUPLICATES_FOLDER = "duplicates"


class Likeness(StrEnum):
    """Kind of duplicate: identical image bytes, or near-identical embeddings."""

    EXACT = "exact"
    NEAR = "near"


DUPLICATE_SCHEMA = pa.schema(
    [("id", pa.string()), ("kept_id", pa.string()), ("cosine", pa.float32()), ("kind", pa.string())]
)
"""One row per pair left out: its id, the id of the pair kept instead, the cosine of their image
embeddings (1 for equal bytes) and a value of `Likeness`.
"""
