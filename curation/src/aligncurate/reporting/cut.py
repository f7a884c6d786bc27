"""How much of a dataset lies at or above one score: what a filter at that score would keep."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aligncurate.progress import OnProgress, silent
from aligncurate.reporting.summary import level_values, score_values
from aligncurate.threads import available_cores, map_ordered
from alignshared import Dataset, ShardInfo
from alignshared.schema import LEVEL_COLUMN

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class LevelAtCut:
    """Of the `rows` of a level, how many lie at or above the cut."""

    level: int
    rows: int
    above: int

    @property
    def share(self) -> float:
        """`above` of `rows`; 0 for an empty level."""
        return self.above / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class Cut:
    """Of all `rows` of a dataset, how many have a score of at least `score`; `levels`, the highest
    first, is empty without levels. A pair without a finite score lies below every cut.
    """

    score: float
    rows: int
    above: int
    levels: list[LevelAtCut]

    @property
    def share(self) -> float:
        """`above` of `rows`; 0 for an empty dataset."""
        return self.above / self.rows if self.rows else 0.0


def count_cut(dataset: Dataset, score: float, on_progress: OnProgress = silent) -> Cut:
    """Count every pair, not bins: exact, in memory that does not grow with the rows.

    Scores are float32, which float64 holds exactly, and are compared with `score` as float64: so
    a cut means what it means to other tools, to the last digit.
    """
    edges = dataset.manifest.level_edges
    levels = edges.levels if edges else 1
    total = np.zeros((2, levels), np.int64)

    def count(shard: ShardInfo) -> npt.NDArray[np.int64]:
        return _count_shard(dataset, shard, score)

    shards = dataset.manifest.shards
    parts = map_ordered(count, shards, workers=available_cores())
    for shard, part in zip(shards, parts, strict=True):
        total += part
        on_progress(shard.rows)
    by_level = [
        LevelAtCut(level, int(total[0, level - 1]), int(total[1, level - 1]))
        for level in range(levels, 0, -1)
    ]
    rows, above = total.sum(axis=1).tolist()
    return Cut(score, rows, above, by_level if edges else [])


def _count_shard(dataset: Dataset, shard: ShardInfo, score: float) -> npt.NDArray[np.int64]:
    """Rows, and rows at or above `score`, of each level: [2, levels]."""
    edges = dataset.manifest.level_edges
    levels = edges.levels if edges else 1
    found = np.zeros((2, levels), np.int64)
    columns = ["score", LEVEL_COLUMN] if edges else ["score"]
    with dataset.open_shard(shard) as parquet:
        for batch in dataset.shard_batches(shard, parquet, columns, _BATCH_ROWS):
            above = score_values(batch).astype(np.float64) >= score
            at = np.zeros(len(above), np.intp)
            if edges:
                where = f"{shard.file} in {dataset.location}"
                at = level_values(batch, levels, where).astype(np.intp) - 1
            found[0] += np.bincount(at, minlength=levels)
            found[1] += np.bincount(at[above], minlength=levels)
    return found
