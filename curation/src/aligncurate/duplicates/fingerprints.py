"""Fingerprints of pairs, read in one pass over a dataset: ids, scores, SHA-256 of images, and image
embeddings.
"""

import hashlib
import os
from contextlib import closing
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
    reader = _Reader(dataset, scratch, scores=scores, embeddings=embeddings)
    shards = dataset.manifest.shards
    firsts = accumulate((shard.rows for shard in shards), initial=0)
    ids: list[pa.Array] = []
    work = zip(firsts, shards, strict=False)
    with closing(reader):
        for part in map_ordered(lambda shard: reader(*shard), work, workers):
            ids += part
            on_progress(sum(map(len, part)))
    return Fingerprints(
        pa.chunked_array(ids, pa.large_string()), reader.scores, reader.digests, reader.mapped()
    )


class _Reader:
    """Reads shards on several threads, each filling its own rows."""

    def __init__(self, dataset: Dataset, scratch: Path, *, scores: bool, embeddings: bool) -> None:
        rows = dataset.manifest.rows
        self._dataset = dataset
        self._schema = dataset.schema
        self._scratch = scratch
        self._dim = 0
        self._file = -1
        self._columns = ["id"]
        self.scores = np.full(rows, np.nan, np.float32)
        self.digests = np.zeros((rows, DIGEST_BYTES), np.uint8)
        if "image" in self._schema.names:
            self._columns.append("image.bytes")
        if scores:
            self._columns.append("score")
        if embeddings:
            self._columns.append(IMAGE_EMBEDDING)
            self._dim = self._schema.field(IMAGE_EMBEDDING).type.list_size
            self._file = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def __call__(self, first: int, shard: ShardInfo) -> list[pa.Array]:
        """Read `shard`, starting at the dataset's row `first`; return the ids."""
        ids: list[pa.Array] = []
        where = f"{shard.file} in {self._dataset.location}"
        with open_matching(self._dataset, shard, self._schema) as parquet:
            size = rows_per_batch(self._schema.names)
            for batch in self._dataset.shard_batches(shard, parquet, self._columns, size):
                self._take(batch, first, where)
                ids.append(batch.column("id").cast(pa.large_string()))
                first += batch.num_rows
        return ids

    def _take(self, batch: pa.RecordBatch, first: int, where: str) -> None:
        end = first + batch.num_rows
        names = batch.schema.names
        if "image" in names:
            images = _compute.struct_field(batch.column("image"), "bytes")
            for row, image in enumerate(images, start=first):
                if image.is_valid:
                    digest = hashlib.sha256(image.as_buffer()).digest()
                    self.digests[row] = np.frombuffer(digest, np.uint8)
        if "score" in names:
            self.scores[first:end] = column_values(batch.column("score"), np.nan)
        if self._dim:
            rows = embedding_rows(batch.column(IMAGE_EMBEDDING), where)
            data, at = rows.tobytes(), 2 * self._dim * first
            while (
                data
            ):  # written, not mapped, so that a full disk raises an error instead of crashing
                written = os.pwrite(self._file, data, at)
                data, at = data[written:], at + written

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def mapped(self) -> npt.NDArray[np.float16] | None:
        if not self._dim:
            return None
        shape = (len(self.scores), self._dim)
        return np.memmap(self._scratch, np.float16, "r", shape=shape)
