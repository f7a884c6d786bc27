"""Levels of scored pairs: the edges between them, computed from a dataset's scores or read from an
earlier run, and the column `level`.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from aligncurate.core.quantiles import (
    CoarseCounts,
    FineCounts,
    OrderedScores,
    equal_width_edges,
    level_sizes,
    quantile_edges,
    top_count,
)
from aligncurate.output.shards import open_checked, open_matching, rows_per_batch, scores_of
from aligncurate.settings import OnProgress
from aligncurate.sources import Unit
from aligncurate.threads import map_ordered
from aligncurate.units.records import FinishedBatch, Timing, UnitRecord, finished_units, write_unit
from aligncurate.units.run import required_unit, write_parts
from alignshared import (
    Dataset,
    InputError,
    LevelEdges,
    LevelStatistics,
    Reason,
    Reject,
    ShardInfo,
    Storage,
)
from alignshared.levels import LevelAccumulator, Scheme, edges_from_json
from alignshared.manifest import LEVELS_FILE, MANIFEST_FILE
from alignshared.schema import LEVEL_COLUMN, LEVEL_TYPE, SCORE_COLUMN, score_column, with_level

Counts = TypeVar("Counts", CoarseCounts, FineCounts)

_SCORES_PER_BATCH = 1 << 19
"""2 MB of scores at a time."""


def _count(dataset: Dataset, by: str, empty: Callable[[], Counts], workers: int) -> Counts:
    """Count the column `by` of all shards in one pass; `empty` creates empty counts."""

    def count_shard(shard: ShardInfo) -> Counts:
        counts = empty()
        with open_checked(dataset, shard) as parquet:
            for batch in dataset.shard_batches(shard, parquet, [by], _SCORES_PER_BATCH):
                counts.add(scores_of(batch, by))
        return counts

    total = empty()
    for part in map_ordered(count_shard, dataset.manifest.shards, workers):
        total.merge(part)
    return total


def count_scores(dataset: Dataset, workers: int, by: str = SCORE_COLUMN) -> CoarseCounts:
    """First pass over the column `by` of `dataset`, on `workers` threads.

    Raises:
        InputError: there is no finite score.
    """
    coarse = _count(dataset, by, CoarseCounts, workers)
    if coarse.finite == 0:
        remedy = "score the pairs again" if by == SCORE_COLUMN else "name another column"
        raise InputError(
            f"none of the {coarse.non_finite:,} {_scores(by)} in {dataset.location} is finite, so "
            f"there is nothing to sort or to cut; {remedy}."
        )
    return coarse


def _scores(by: str) -> str:
    """Name the numbers in the column `by`."""
    return "scores" if by == SCORE_COLUMN else f"values of {by}"


def find_edges(
    dataset: Dataset, by: str, coarse: CoarseCounts, levels: int, scheme: Scheme, workers: int
) -> LevelEdges:
    """Find the edges of `levels` levels, in a second pass over the column `by` counted in `coarse`.

    Raises:
        InputError: there are fewer distinct scores than levels, or, under quantiles, so many equal
            ones that a level would be empty.
    """
    bins = coarse.bins_to_resolve(levels)
    ordered = OrderedScores(coarse, _count(dataset, by, lambda: FineCounts(bins), workers))
    if ordered.distinct_at_least < levels:
        raise InputError(
            f"{dataset.location} has only {ordered.distinct_at_least} distinct finite "
            f"{_scores(by)}, too few for {levels} levels; give a smaller --levels or more data."
        )
    if scheme == "equal-width":
        least, greatest = ordered.at_rank(0), ordered.at_rank(ordered.count - 1)
        edges = equal_width_edges(least, greatest, levels)
    else:
        edges = quantile_edges(ordered, levels)
        sizes = level_sizes(ordered, list(edges))
        if empty := [str(level) for level, size in enumerate(sizes, start=1) if size == 0]:
            raise InputError(
                f"so many pairs of {dataset.location} have equal {_scores(by)}, which share a "
                f"level, that of {levels} levels {', '.join(empty)} would be empty; give a smaller "
                "--levels or --scheme equal-width."
            )
    return LevelEdges(tuple(edges.tolist()), scheme, by)


def find_top_cut(dataset: Dataset, fraction: Fraction, workers: int) -> tuple[np.float32, int, int]:
    """Find the least of the top `fraction` of all finite scores of `dataset`, in two passes;
    return it, the number of scores wanted, and the number, with ties, of those not below it.

    Raises:
        InputError: there is no finite score.
    """
    coarse = count_scores(dataset, workers)
    wanted = top_count(fraction, coarse.finite)
    rank = coarse.finite - wanted
    bins = coarse.bins_of_ranks([rank])
    counts = _count(dataset, SCORE_COLUMN, lambda: FineCounts(bins), workers)
    ordered = OrderedScores(coarse, counts)
    score = ordered.at_rank(rank)
    return score, wanted, ordered.count - ordered.below(score)


@dataclass(frozen=True, slots=True)
class EdgesFile:
    """Edges of an earlier run, and the manifest entry of the model that scored; empty if
    missing.
    """

    location: str
    edges: LevelEdges
    model: dict[str, Any]


def read_edges(path: str | os.PathLike[str]) -> EdgesFile:
    """Read edges from a `levels.json` or `manifest.json`, or from the folder of a bucket run.

    Raises:
        InputError: the file is missing or holds no edges.
    """
    location = Storage(path).location.rstrip("/")
    for file in (MANIFEST_FILE, LEVELS_FILE):  # the manifest first, since it also names the weights
        if Storage(location).exists(file):
            location = f"{location}/{file}"
            break
    folder, _, name = location.rpartition("/")
    data: Any = Storage(folder or "/").read_json(name)
    edges = edges_from_json(data, location)
    return EdgesFile(location, edges, _scorer(data, edges.by))


def _scorer(data: dict[str, Any], by: str) -> dict[str, Any]:
    """The entry of the model that gave the column `by` in the content `data` of a manifest."""
    models = data.get("models")
    named = models.items() if isinstance(models, dict) else ()
    entries = {SCORE_COLUMN: data.get("model"), **{score_column(k): v for k, v in named}}
    model = entries.get(by)
    return model if isinstance(model, dict) else {}


def label(
    dataset: Dataset, storage: Storage, edges: LevelEdges, workers: int, on_progress: OnProgress
) -> tuple[list[UnitRecord], list[LevelStatistics]]:
    """Copy all shards of `dataset` to `storage` with the column `level`, on `workers` threads,
    skipping those finished by an earlier run; return the shards and the level counts.

    Pairs whose number in the edges' column is null, NaN or infinite go to `rejects/` instead.

    Raises:
        ContractError: a shard does not match the manifest.
    """
    schema = dataset.schema
    shards = dataset.manifest.shards
    units = [Unit(index, shard.file, 0, shard.rows) for index, shard in enumerate(shards)]

    def label_unit(unit: Unit) -> UnitRecord:
        shard, levels = shards[unit.index], LevelAccumulator(edges.levels)
        batches = _labelled(dataset, shard, schema, edges, levels)
        with required_unit(f"{shard.file} in {dataset.location}"):
            return write_unit(
                storage, unit.index, with_level(schema), batches,
                file=shard.file, counts=levels.to_json,
            )  # fmt: skip

    finished = finished_units(storage)
    records = write_parts(
        storage, units, finished, label_unit, workers=workers, on_progress=on_progress
    )
    total = LevelAccumulator(edges.levels)
    # Added in shard order: bit-identical sums for any number of workers.
    for record in records:
        total.merge(LevelAccumulator.from_json(record.counts))
    return records, total.statistics()


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
            scores = scores_of(batch, edges.by)
            finite = np.isfinite(scores)
            rejects: list[Reject] = []
            if not finite.all():
                rejects = _rejects_of(batch.filter(pa.array(~finite)), edges.by)
                batch, scores = batch.filter(pa.array(finite)), scores[finite]
            assigned = edges.assign(scores)
            levels.add(scores, assigned)
            table = pa.Table.from_batches([batch])
            if LEVEL_COLUMN in table.schema.names:
                table = table.drop_columns([LEVEL_COLUMN])
            # pa.array would import pandas, as to_numpy does in `scores_of`.
            buffers = [None, pa.py_buffer(assigned)]
            column = pa.Array.from_buffers(LEVEL_TYPE, len(assigned), buffers)
            yield FinishedBatch(table.append_column(LEVEL_COLUMN, column), rejects, Timing())


def _rejects_of(batch: pa.RecordBatch, by: str) -> list[Reject]:
    columns = [name for name in ("id", "image", by) if name in batch.schema.names]
    return [
        Reject(
            row["id"],
            (row.get("image") or {}).get("path"),
            Reason.NON_FINITE_SCORE,
            f"the {by} is {'null' if row[by] is None else row[by]}",
        )
        for row in batch.select(columns).to_pylist()
    ]
