"""Labelling pairs with levels: shards are copied batch by batch with one more column."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.output.shards import open_matching, rows_per_batch, scores_of
from aligncurate.progress import OnProgress
from aligncurate.sources import Unit
from aligncurate.units.records import FinishedBatch, Timing, UnitRecord, finished_units
from aligncurate.units.run import write_parts, write_shard_unit
from alignshared import Dataset, LevelEdges, LevelStatistics, Reason, Reject, ShardInfo, Storage
from alignshared.levels import LevelAccumulator
from alignshared.schema import LEVEL_COLUMN, LEVEL_TYPE, with_level


@dataclass(frozen=True, slots=True)
class Labelled:
    """Written shards, in input order, and the level counts of their pairs."""

    records: list[UnitRecord]
    statistics: list[LevelStatistics]


def label(
    dataset: Dataset, storage: Storage, edges: LevelEdges, workers: int, on_progress: OnProgress
) -> Labelled:
    """Copy all shards of `dataset` to `storage` with the column `level`, on `workers` threads,
    skipping those finished by an earlier run.

    Pairs whose score is null, NaN or infinite go to `rejects/` instead.

    Raises:
        ContractError: a shard does not match the manifest.
    """
    schema = dataset.schema
    shards = dataset.manifest.shards
    units = [Unit(index, shard.file, 0, shard.rows) for index, shard in enumerate(shards)]

    def label_unit(unit: Unit) -> UnitRecord:
        shard, levels = shards[unit.index], LevelAccumulator(edges.levels)
        return write_shard_unit(
            storage,
            unit.index,
            with_level(schema),
            _labelled(dataset, shard, schema, edges, levels),
            f"{shard.file} in {dataset.location}",
            file=shard.file,
            counts=levels.to_json,
        )

    finished = {record.index: record for record in finished_units(storage)}
    records = write_parts(
        storage, units, finished, label_unit, workers=workers, on_progress=on_progress
    )
    total = LevelAccumulator(edges.levels)
    # Added in shard order: bit-identical sums for any number of workers.
    for record in records:
        total.merge(LevelAccumulator.from_json(record.counts))
    return Labelled(records, total.statistics())


def _labelled(
    dataset: Dataset,
    shard: ShardInfo,
    schema: pa.Schema,
    edges: LevelEdges,
    levels: LevelAccumulator,
) -> Iterator[FinishedBatch]:
    """Yield pairs of `shard` with levels, and those without a finite score as rejects; count both
    in `levels`.
    """
    size = rows_per_batch(with_level(schema).names)
    with open_matching(dataset, shard, schema) as parquet:
        for batch in dataset.shard_batches(shard, parquet, batch_size=size):
            scores = scores_of(batch)
            finite = np.isfinite(scores)
            rejects: list[Reject] = []
            if not finite.all():
                rejects = _rejects_of(batch.filter(pa.array(~finite)))
                batch, scores = batch.filter(pa.array(finite)), scores[finite]
            assigned = edges.assign(scores)
            levels.add(scores, assigned)
            yield FinishedBatch(_with_column(batch, assigned), rejects, Timing())


def _with_column(batch: pa.RecordBatch, levels: npt.NDArray[np.int8]) -> pa.Table:
    table = pa.Table.from_batches([batch])
    if LEVEL_COLUMN in table.schema.names:
        table = table.drop_columns([LEVEL_COLUMN])
    # pa.array would import pandas, as to_numpy does in `scores_of`.
    column = pa.Array.from_buffers(LEVEL_TYPE, len(levels), [None, pa.py_buffer(levels)])
    return table.append_column(LEVEL_COLUMN, column)


def _rejects_of(batch: pa.RecordBatch) -> list[Reject]:
    columns = [name for name in ("id", "image", "score") if name in batch.schema.names]
    return [
        Reject(
            row["id"],
            (row.get("image") or {}).get("path"),
            Reason.NON_FINITE_SCORE,
            "the score is null" if row["score"] is None else f"the score is {row['score']}",
        )
        for row in batch.select(columns).to_pylist()
    ]
