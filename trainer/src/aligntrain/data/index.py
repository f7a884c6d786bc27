"""What is known of every row without its picture: length, modality, level, side of the split.

One pass over the small columns, 13 bytes kept per row; each process makes it for itself and comes
to the same.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

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
    """Of every row: `lengths` [n] int32 in characters, `has_image` [n] bool, `hashes` [n] uint64 of
    its id; and how many rows have a conversation.
    """

    lengths: npt.NDArray[np.int32]
    has_image: npt.NDArray[np.bool_]
    hashes: npt.NDArray[np.uint64]
    conversations: int

    def validation_rows(self, share: float) -> npt.NDArray[np.int64]:
        """Numbers, ascending, of the rows that are kept for validation, about `share` of all.

        Which these are depends on their ids alone: not on the seed, the shards or other rows.
        """
        return np.flatnonzero(self._held_out(share))

    def train_rows(self, share: float) -> npt.NDArray[np.int64]:
        """Numbers, ascending, of the rows that `validation_rows(share)` leaves for training.

        Raises:
            InputError: `share` is none, or leaves no row.
        """
        rows = np.flatnonzero(~self._held_out(share))
        if not len(rows):
            raise InputError(
                f"data.validation_share {share} leaves none of {len(self.hashes)} rows for "
                "training; lower it."
            )
        return rows

    def _held_out(self, share: float) -> npt.NDArray[np.bool_]:
        if not 0 <= share < 1:
            raise InputError(f"data.validation_share {share} cannot be: give 0 or more, below 1.")
        return self.hashes < np.uint64(int(share * _HASH_RANGE))


def read_index(shards: ShardedDataset, *, conversations: bool = False) -> Index:
    """Look at every row of `shards` once; with `conversations`, some row must have one.

    Raises:
        ContractError: a level is missing or out of range.
        InputError: there is no conversation and there should be.
    """
    columns = [name for name in shards.columns if name != "image"] + ["image.path"]
    lengths: list[npt.NDArray[np.int32]] = []
    has_image: list[npt.NDArray[np.bool_]] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    talking = 0
    for _, shard, batch in shards.iter_batches(columns):
        lengths.append(_lengths(batch))
        has_image.append(_valid(batch.column("image")))
        hashes.append(hash_ids(batch.column("id").to_pylist()))
        if "conversations" in columns:
            talking += len(batch) - batch.column("conversations").null_count
        if shards.levels is not None and not shards.relevelled:
            _check_levels(batch, has_image[-1], shards, shard)
    if conversations and not talking:
        raise InputError(
            f"{shards.location} holds captions and no conversations; give data that aligncurate "
            "ingest wrote, or set data.template to plain."
        )
    return Index(
        np.concatenate(lengths), np.concatenate(has_image), np.concatenate(hashes), talking
    )


def hash_ids(ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Hashes [n] uint64 (BLAKE2b) of `ids` up to their first `#`.

    What `ingest` adds behind a `#` tells records on one picture apart; all of them fall on the same
    side of the split, so that no picture is seen in training that is asked about in validation.
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
    """Characters [n] of the conversations, or of the caption where there is none."""
    captions = np.zeros(len(batch), dtype=np.int64)
    if "caption" in batch.schema.names:
        captions = _characters(batch.column("caption"))
    if "conversations" not in batch.schema.names:
        return captions.astype(np.int32)
    turns = batch.column("conversations")
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
