"""One pass over the scores of a dataset: their histogram, and what each level holds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.columns import column_values
from aligncurate.core.histogram import Histogram
from aligncurate.local import available_cores, map_ordered
from aligncurate.progress import OnProgress, silent
from alignshared import ContractError, Dataset, LevelStatistics, ShardInfo
from alignshared.levels import LevelAccumulator
from alignshared.schema import LEVEL_COLUMN, require_columns

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The scores of a whole dataset; `levels` is empty for a dataset without levels."""

    histogram: Histogram
    levels: list[LevelStatistics]


def summarise_scores(dataset: Dataset, on_progress: OnProgress = silent) -> ScoreSummary:
    """Read `score`, and `level` where there is one, of all shards, in memory that does not grow.

    Raises:
        ContractError: a shard lacks a column, or has a level that the edges do not make.
    """
    edges = dataset.manifest.level_edges
    histogram, levels = Histogram(), LevelAccumulator(edges.levels if edges else 1)
    parts = map_ordered(
        lambda shard: _summarise_shard(dataset, shard),
        dataset.manifest.shards,
        workers=available_cores(),
    )
    for part_histogram, part_levels, rows in parts:
        histogram.merge(part_histogram)
        levels.merge(part_levels)
        on_progress(rows)
    return ScoreSummary(histogram, levels.statistics() if edges else [])


def _summarise_shard(dataset: Dataset, shard: ShardInfo) -> tuple[Histogram, LevelAccumulator, int]:
    edges = dataset.manifest.level_edges
    histogram, levels = Histogram(), LevelAccumulator(edges.levels if edges else 1)
    columns = ["score", LEVEL_COLUMN] if edges else ["score"]
    with dataset.open_shard(shard) as parquet:
        require_columns(parquet.schema_arrow, columns, f"{shard.file} in {dataset.location}")
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            scores = score_values(batch)
            histogram.add(scores)
            if edges:
                levels.add(
                    scores, level_values(batch, edges.levels, f"{shard.file} in {dataset.location}")
                )
    return histogram, levels, shard.rows


def score_values(batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """Scores [n] float32 of `batch`; null is NaN."""
    return column_values(batch.column("score"), np.nan).astype(np.float32, copy=False)


def level_values(batch: pa.RecordBatch, levels: int, where: str) -> npt.NDArray[np.int8]:
    """Levels [n] int8 of `batch`.

    Raises:
        ContractError: one of them is null or not in 1..`levels`.
    """
    values = column_values(batch.column(LEVEL_COLUMN), 0)
    if len(values) and not (values.min() >= 1 and values.max() <= levels):
        raise ContractError(
            f"{where} has levels outside 1..{levels}; see what else is wrong with aligncurate "
            "validate."
        )
    return values
