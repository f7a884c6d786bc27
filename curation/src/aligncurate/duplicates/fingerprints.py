"""Fingerprints of pairs, read in one pass over a dataset: ids, scores, SHA-256 of images, and image
embeddings.
"""

import hashlib
import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aligncurate.core.vectors import column_of, column_values, embedding_rows
from aligncurate.output.shards import open_matching, rows_per_batch
from aligncurate.settings import OnProgress
from aligncurate.threads import map_ordered
from alignshared import Dataset, ShardInfo
from alignshared.schema import EMBEDDING_COLUMNS

_compute: Any = pc  # generated at import, invisible to type checkers

DIGEST_BYTES = hashlib.sha256().digest_size

IMAGE_EMBEDDING, TEXT_EMBEDDING = EMBEDDING_COLUMNS


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Fingerprints of a dataset's n rows, in order.

    `scores` [n] float32, NaN if missing; `digests` [n, 32] uint8, zeros without image bytes;
    `embeddings` [n, d] float16, memory-mapped, None if not requested.
    """

    ids: pa.ChunkedArray
    scores: npt.NDArray[np.float32]
    digests: npt.NDArray[np.uint8]
    embeddings: npt.NDArray[np.float16] | None

    def preference(self, *, by_score: bool) -> npt.NDArray[np.int64]:
        """Rank [n] of each row by descending score, then id, rows without score last; or by
        position in the dataset.
        """
        count = len(self.scores)
        rank = np.arange(count)
        if by_score:
            # Arrow sorts NaN last in either direction.
            table = pa.table({"score": column_of(self.scores), "id": self.ids})
            keys = [("score", "descending"), ("id", "ascending")]
            order = column_values(_compute.sort_indices(table, sort_keys=keys), 0)
            rank = np.empty(count, np.int64)
            rank[order] = np.arange(count)
        return rank


def read_fingerprints(
    dataset: Dataset,
    scratch: Path,
    *,
    scores: bool,
    embeddings: bool,
    workers: int,
    on_progress: OnProgress,
) -> Fingerprints:
    """Read every row of `dataset` once; embeddings go to a new file `scratch`.

    A row takes 36 bytes and its id in memory, and 2 d bytes in the file.

    Raises:
        ContractError: a shard does not match the manifest, or a row lacks its embedding.
    """
    schema, shards, rows = dataset.schema, dataset.manifest.shards, dataset.manifest.rows
    images = "image" in schema.names
    read_of = {"id": True, "image.bytes": images, "score": scores, IMAGE_EMBEDDING: embeddings}
    columns = [name for name, is_read in read_of.items() if is_read]
    dim = schema.field(IMAGE_EMBEDDING).type.list_size if embeddings else 0
    score_of_row = np.full(rows, np.nan, np.float32)
    digests = np.zeros((rows, DIGEST_BYTES), np.uint8)
    file = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) if embeddings else -1

    def read(work: tuple[int, ShardInfo]) -> list[pa.Array]:
        """Read a shard, which starts at a row of the dataset; return the ids."""
        first, shard = work
        ids: list[pa.Array] = []
        with open_matching(dataset, shard, schema) as parquet:
            size = rows_per_batch(schema.names)
            for batch in dataset.shard_batches(shard, parquet, columns, size):
                end = first + batch.num_rows
                ids.append(batch.column("id").cast(pa.large_string()))
                if images:
                    _digest(batch.column("image"), digests[first:end])
                if scores:
                    score_of_row[first:end] = column_values(batch.column("score"), np.nan)
                if embeddings:
                    where = f"{shard.file} in {dataset.location}"
                    vectors = embedding_rows(batch.column(IMAGE_EMBEDDING), where)
                    _write(file, vectors.tobytes(), 2 * dim * first)
                first = end
        return ids

    ids: list[pa.Array] = []
    firsts = accumulate((shard.rows for shard in shards), initial=0)
    try:
        for part in map_ordered(read, zip(firsts, shards, strict=False), workers):
            ids += part
            on_progress(sum(map(len, part)))
    finally:
        if embeddings:
            os.close(file)
    mapped = np.memmap(scratch, np.float16, "r", shape=(rows, dim)) if embeddings else None
    return Fingerprints(pa.chunked_array(ids, pa.large_string()), score_of_row, digests, mapped)


def _digest(images: pa.StructArray, digests: npt.NDArray[np.uint8]) -> None:
    """Fill `digests` [n, 32] with the SHA-256 of those `images` [n] that have bytes."""
    for row, image in enumerate(_compute.struct_field(images, "bytes")):
        if image.is_valid:
            digest = hashlib.sha256(image.as_buffer()).digest()
            digests[row] = np.frombuffer(digest, np.uint8)


def _write(file: int, data: bytes, at: int) -> None:
    # Not through the memory map, where a full disk would crash instead of raising an error.
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
