"""Index: length, modality and validation side of every row, without reading images.

One pass over the small columns, 13 bytes kept per row. Each process builds the same index.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alignshared import ContractError, InputError, ShardInfo
from alignshared.schema import LEVEL_COLUMN
from aligntrain.data.dataset import ShardedDataset

_HASH_RANGE = 1 << 64


@dataclass(frozen=True, slots=True)
class Index:
    """Columns over all n rows of a dataset.

    `lengths` [n] int32 in characters, `has_image` [n] bool, `hashes` [n] uint64 of the ids;
    `conversations` is the number of rows that have one.
    """

    lengths: npt.NDArray[np.int32]
    has_image: npt.NDArray[np.bool_]
    hashes: npt.NDArray[np.uint64]
    conversations: int

    def validation_rows(self, share: float) -> npt.NDArray[np.int64]:
        """Return the numbers, ascending, of the validation rows, about `share` of all.

        The choice depends only on a row's id, not on the seed, the shards or other rows.
        """
        return np.flatnonzero(self._held_out(share))

    def train_rows(self, share: float) -> npt.NDArray[np.int64]:
        """Return the numbers, ascending, of all other rows; InputError if `share` leaves none."""
        rows = np.flatnonzero(~self._held_out(share))
        if not len(rows):
            raise InputError(
                f"data.validation_share {share} leaves none of {len(self.hashes)} rows for "
                "training; lower it."
            )
        return rows

    def _held_out(self, share: float) -> npt.NDArray[np.bool_]:
        if not 0 <= share < 1:
            raise InputError(f"data.validation_share must be at least 0 and below 1 (got {share}).")
        return self.hashes < np.uint64(int(share * _HASH_RANGE))


def read_index(shards: ShardedDataset, *, conversations: bool = False) -> Index:
    """Read the small columns of `shards` once; with `conversations`, some row must have one.

    Raises:
        ContractError: a level is missing or out of range.
        InputError: there is no conversation although one is required.
    """
    columns = [name for name in shards.columns if name != "image"] + ["image.path"]
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    conversation_count = 0
    for _, shard, batch in shards.iter_batches(columns):
        has_image = _valid(batch.column("image"))
        parts.append((_lengths(batch), has_image, hash_ids(batch.column("id").to_pylist())))
        if "conversations" in columns:
            conversation_count += len(batch) - batch.column("conversations").null_count
        if shards.levels is not None and not shards.relevelled:
            _check_levels(batch, has_image, shards, shard)
    if conversations and not conversation_count:
        raise InputError(
            f"{shards.location} holds captions and no conversations; give data that aligncurate "
            "ingest wrote, or set data.template to plain."
        )
    lengths, has_images, hashes = map(np.concatenate, zip(*parts, strict=True))
    return Index(lengths, has_images, hashes, conversation_count)


def hash_ids(ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return hashes [n] uint64 (BLAKE2b) of `ids` up to their first `#`.

    `ingest` distinguishes records of one image by a suffix after `#`. Without it they fall on one
    side of the split, so that no image occurs in both training and validation.
    """
    digests = b"".join(
        hashlib.blake2b(id_.partition("#")[0].encode(), digest_size=8).digest() for id_ in ids
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _check_levels(
    batch: pa.RecordBatch,
    has_image: npt.NDArray[np.bool_],
    shards: ShardedDataset,
    shard: ShardInfo,
) -> None:
    levels = batch.column(LEVEL_COLUMN).fill_null(0).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(((levels < 1) | (levels > (shards.levels or 0))) & has_image)
    if len(wrong):
        row = int(wrong[0])
        level = batch.column(LEVEL_COLUMN)[row].as_py()
        raise ContractError(
            f"{batch.column('id')[row].as_py()} in {shard.file} of {shards.location} has level "
            f"{level}, which is not in 1..{shards.levels}; run aligncurate bucket again."
        )


def _lengths(batch: pa.RecordBatch) -> npt.NDArray[np.int32]:
    """Return the characters [n] of each conversation, or of the caption without one."""
    captions = np.zeros(len(batch), dtype=np.int64)
    if "caption" in batch.schema.names:
        captions = _characters(batch.column("caption"))
    if "conversations" not in batch.schema.names:
        return captions.astype(np.int32)
    turns = batch.column("conversations")
    # Running character counts over all turns; a row's count is the difference at its ends.
    sums = np.concatenate([[0], np.cumsum(_characters(turns.flatten().field("value")))])
    ends = np.cumsum(
        pc.call_function("list_value_length", [turns]).fill_null(0).to_numpy(zero_copy_only=False)
    )
    begins = np.concatenate([[0], ends[:-1]])
    spoken = sums[ends] - sums[begins]
    return np.where(_valid(turns), spoken, captions).astype(np.int32)


def _characters(texts: pa.Array) -> npt.NDArray[np.int64]:
    counts = pc.call_function("utf8_length", [texts]).fill_null(0).to_numpy(zero_copy_only=False)
    return counts.astype(np.int64)


def _valid(column: pa.Array) -> npt.NDArray[np.bool_]:
    return column.is_valid().to_numpy(zero_copy_only=False)
