"""Alignment levels: their edges and statistics.

A level is an integer 1..N and N is the best aligned: level = 1 + number of edges <= score. Equal
scores share a level by construction. The score is CLIP's, or the number in another column.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pydantic.dataclasses

from alignshared.errors import InputError
from alignshared.schema import CONTRACT, SCORE_COLUMN, Count

MIN_LEVELS = 2
MAX_LEVELS = 127
"""`level` is int8."""

Scheme = Literal["quantile", "equal-width"]


def check_level_count(levels: int) -> None:
    """Raise InputError unless `levels` is a valid number of levels."""
    if not MIN_LEVELS <= levels <= MAX_LEVELS:
        raise InputError(
            f"--levels {levels} cannot be: give a number from {MIN_LEVELS} to {MAX_LEVELS}."
        )


def edge_ranks(levels: int, count: int) -> list[int]:
    """0-based ranks of the N-1 edges between N `levels` of `count` scores: floor(k * count / N)."""
    return [k * count // levels for k in range(1, levels)]


@dataclass(frozen=True, slots=True)
class LevelEdges:
    """The N-1 scores between N levels, ascending, each exactly a float32, their scheme, and the
    column `by` that holds the scores.
    """

    edges: tuple[float, ...]
    scheme: Scheme
    by: str = SCORE_COLUMN

    def __post_init__(self) -> None:
        check_level_count(self.levels)
        values = np.asarray(self.edges, dtype=np.float64)
        if not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise InputError(f"edges must be finite and ascending, not {list(self.edges)}.")

    @property
    def levels(self) -> int:
        """N, the number of levels."""
        return len(self.edges) + 1

    def assign(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
        """Levels [n] int8 in 1..N of finite `scores` [n] float32; a score on an edge goes up."""
        levels = np.ones(len(scores), dtype=np.int8)
        # Comparing with every edge runs in vector registers: for 8 levels 16 times as fast as a
        # binary search with its unpredictable branches, and still twice as fast for 127.
        for edge in np.asarray(self.edges, dtype=np.float32):
            levels += (scores >= edge).view(np.int8)
        return levels


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=CONTRACT)
class LevelStatistics:
    """Statistics of one level; the scores are None for an empty level."""

    level: Count
    count: Count
    share: float
    mean: float | None
    min: float | None
    max: float | None


def levels_to_json(edges: LevelEdges, statistics: list[LevelStatistics]) -> dict[str, Any]:
    """The content of `levels.json`; Python's JSON floats hold a float32 exactly. `by` is there
    if it is not the score.
    """
    return {
        **({} if edges.by == SCORE_COLUMN else {"by": edges.by}),
        "scheme": edges.scheme,
        "levels": edges.levels,
        "edges": list(edges.edges),
        "statistics": [asdict(s) for s in statistics],
    }


def edges_from_json(data: Any, where: str) -> LevelEdges:
    """Read edges from parsed `levels.json` or `manifest.json`; `where` names the file in errors.

    Raises:
        InputError: edges are missing or invalid.
    """
    remedy = "give a levels.json that a bucket run wrote"
    edges = data.get("edges") if isinstance(data, dict) else None
    if not isinstance(edges, list) or not edges:
        raise InputError(f"{where} holds no edges; {remedy}.")
    scheme = data.get("scheme", "quantile")
    if scheme not in get_args(Scheme):
        raise InputError(f"{where} names an unknown scheme {scheme!r}; {remedy}.")
    by = data.get("by") or SCORE_COLUMN
    if not isinstance(by, str):
        raise InputError(f"{where} names no column of the levels but {by!r}; {remedy}.")
    try:
        with np.errstate(over="ignore"):
            return LevelEdges(tuple(float(np.float32(edge)) for edge in edges), scheme, by)
    except (InputError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"the edges in {where} are not {MIN_LEVELS - 1} to {MAX_LEVELS - 1} finite, ascending "
            f"numbers; {remedy}."
        ) from error


class LevelAccumulator:
    """Per-level count, sum, minimum and maximum score; mergeable across parts."""

    def __init__(self, levels: int) -> None:
        self._count = np.zeros(levels, dtype=np.int64)
        self._sum = np.zeros(levels, dtype=np.float64)
        self._min = np.full(levels, np.inf, dtype=np.float32)
        self._max = np.full(levels, -np.inf, dtype=np.float32)

    def add(self, scores: npt.NDArray[np.float32], levels: npt.NDArray[np.int8]) -> None:
        """Count `scores` [n] under their `levels` [n]."""
        at = levels.astype(np.intp) - 1
        size = len(self._count)
        self._count += np.bincount(at, minlength=size)
        self._sum += np.bincount(at, weights=scores, minlength=size)
        np.minimum.at(self._min, at, scores)
        np.maximum.at(self._max, at, scores)

    def merge(self, other: Self) -> None:
        """Add the counts of another part."""
        self._count += other._count
        self._sum += other._sum
        np.minimum(self._min, other._min, out=self._min)
        np.maximum(self._max, other._max, out=self._max)

    def to_json(self) -> list[list[float]]:
        """Return each level's count and, unless empty, its exact sum, minimum and maximum."""
        columns = (self._count, self._sum, self._min, self._max)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [list(row) if row[0] else [0] for row in rows]

    @classmethod
    def from_json(cls, rows: list[list[float]]) -> Self:
        """Restore an accumulator from the `rows` of `to_json`."""
        levels = cls(len(rows))
        for i, (count, *scores) in enumerate(rows):
            levels._count[i] = count
            if scores:
                levels._sum[i], levels._min[i], levels._max[i] = scores
        return levels

    def statistics(self) -> list[LevelStatistics]:
        """One entry per level, from level 1 upwards."""
        total = max(int(self._count.sum()), 1)
        return [
            LevelStatistics(
                level=i + 1,
                count=int(count),
                share=int(count) / total,
                mean=float(self._sum[i] / count) if count else None,
                min=float(self._min[i]) if count else None,
                max=float(self._max[i]) if count else None,
            )
            for i, count in enumerate(self._count)
        ]
