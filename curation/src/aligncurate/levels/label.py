"""Giving every pair its level: each shard is copied, batch by batch, with one column more."""

from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.output.folder import WrittenRejects
from aligncurate.output.shards import open_matching, rows_per_batch, scores_of
from aligncurate.progress import OnProgress
from aligncurate.threads import map_ordered
from alignshared import (
    Dataset,
    LevelEdges,
    LevelStatistics,
    Reason,
    ShardInfo,
    Storage,
)
from alignshared.levels import LevelAccumulator
from alignshared.manifest import REJECTS_FOLDER
from alignshared.rejects import REJECT_SCHEMA
from alignshared.schema import LEVEL_COLUMN, LEVEL_TYPE, with_level
from alignshared.shards import ShardResult, ShardWriter, writing_shard


@dataclass(frozen=True, slots=True)
class Labelled:
    """What was written: shards and rejects in the order of the input's shards, and the levels."""

    shards: list[ShardInfo]
    rejects: list[WrittenRejects]
    statistics: list[LevelStatistics]


@dataclass(frozen=True, slots=True)
class _LabelledShard:
    info: ShardInfo
    rejects: WrittenRejects
    levels: LevelAccumulator


class _Job:
    """What the labelling of every shard shares; `report` may be called from any thread."""

    def __init__(
        self, dataset: Dataset, storage: Storage, edges: LevelEdges, on_progress: OnProgress
    ) -> None:
        self.dataset = dataset
        self.storage = storage
        self.edges = edges
        self.source_schema = dataset.schema
        self.schema = with_level(self.source_schema)
        self.batch_size = rows_per_batch(self.schema.names)
        self._on_progress = on_progress
        self._lock = Lock()

    def report(self, done: int, rejects: int) -> None:
        with self._lock:
            self._on_progress(done, rejects)


def label(
    dataset: Dataset, storage: Storage, edges: LevelEdges, workers: int, on_progress: OnProgress
) -> Labelled:
    """Copy all shards of `dataset` to `storage` with the column `level`, on `workers` threads.

    Pairs whose score is null, NaN or infinite go to `rejects/` instead.

    Raises:
        ContractError: a shard is not what the manifest says.
    """
    job = _Job(dataset, storage, edges, on_progress)
    levels = LevelAccumulator(edges.levels)
    parts: list[_LabelledShard] = []
    # Added in the order of the shards: the same sums, to the bit, for any number of workers.
    for part in map_ordered(lambda s: _label_shard(job, s), dataset.manifest.shards, workers):
        levels.merge(part.levels)
        parts.append(part)
    return Labelled([p.info for p in parts], [p.rejects for p in parts], levels.statistics())


def _label_shard(job: _Job, shard: ShardInfo) -> _LabelledShard:
    levels = LevelAccumulator(job.edges.levels)
    with ExitStack() as stack:
        parquet = stack.enter_context(open_matching(job.dataset, shard, job.source_schema))
        writer, written = stack.enter_context(writing_shard(job.storage, shard.file, job.schema))
        rejects = _RejectShard(job.storage, shard.file, stack)
        for batch in job.dataset.shard_batches(shard, parquet, batch_size=job.batch_size):
            scores = scores_of(batch)
            finite = np.isfinite(scores)
            accepted = int(np.count_nonzero(finite))
            if accepted < len(scores):
                rejects.write(batch.filter(pa.array(~finite)))
                batch, scores = batch.filter(pa.array(finite)), scores[finite]
            assigned = job.edges.assign(scores)
            levels.add(scores, assigned)
            writer.write(_with_column(batch, assigned))
            job.report(len(finite), len(finite) - accepted)
    return _LabelledShard(written.info, rejects.written(), levels)


def _with_column(batch: pa.RecordBatch, levels: npt.NDArray[np.int8]) -> pa.Table:
    table = pa.Table.from_batches([batch])
    if LEVEL_COLUMN in table.schema.names:
        table = table.drop_columns([LEVEL_COLUMN])
    # pa.array would import pandas, as to_numpy does in `scores_of`.
    column = pa.Array.from_buffers(LEVEL_TYPE, len(levels), [None, pa.py_buffer(levels)])
    return table.append_column(LEVEL_COLUMN, column)


class _RejectShard:
    """The rejects of one shard, in a file that is begun with the first of them."""

    def __init__(self, storage: Storage, file: str, stack: ExitStack) -> None:
        self._storage = storage
        self._file = f"{REJECTS_FOLDER}/{file}"
        self._stack = stack
        self._open: tuple[ShardWriter, ShardResult] | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the pairs of `batch`, none of which has a finite score."""
        if self._open is None:
            self._open = self._stack.enter_context(
                writing_shard(self._storage, self._file, REJECT_SCHEMA)
            )
        writer, _ = self._open
        writer.write(_rejects_of(batch))

    def written(self) -> WrittenRejects:
        """The finished file, once the stack is closed."""
        if self._open is None:
            return WrittenRejects(None, {})
        info = self._open[1].info
        return WrittenRejects(info, {Reason.NON_FINITE_SCORE.value: info.rows})


def _rejects_of(batch: pa.RecordBatch) -> pa.Table:
    rows = batch.num_rows
    has_images = "image" in batch.schema.names
    paths = batch.column("image").field("path") if has_images else pa.nulls(rows)
    scores = batch.column("score").to_pylist()
    details = ["the score is null" if s is None else f"the score is {s}" for s in scores]
    columns = [
        batch.column("id"),
        paths.cast(pa.string()),
        pa.array([Reason.NON_FINITE_SCORE.value] * rows),
        pa.array(details),
    ]
    return pa.Table.from_arrays(columns, schema=REJECT_SCHEMA)
