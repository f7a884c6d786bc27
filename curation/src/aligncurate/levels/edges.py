"""Edges between levels, computed from a dataset's scores or read from an earlier run."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from aligncurate.core.quantiles import (
    CoarseCounts,
    FineCounts,
    OrderedScores,
    equal_width_edges,
    level_sizes,
    quantile_edges,
    top_count,
)
from aligncurate.output.shards import open_checked, scores_of
from aligncurate.threads import map_ordered
from alignshared import Dataset, InputError, LevelEdges, ShardInfo, Storage
from alignshared.levels import Scheme, edges_from_json
from alignshared.manifest import LEVELS_FILE, MANIFEST_FILE

Counts = TypeVar("Counts", CoarseCounts, FineCounts)

_SCORES_PER_BATCH = 1 << 19
"""2 MB of scores at a time."""


def _shard_scores(dataset: Dataset, shard: ShardInfo) -> Iterator[npt.NDArray[np.float32]]:
    with open_checked(dataset, shard) as parquet:
        for batch in dataset.shard_batches(shard, parquet, ["score"], _SCORES_PER_BATCH):
            yield scores_of(batch)


def _count(dataset: Dataset, empty: Callable[[], Counts], workers: int) -> Counts:
    """Count the scores of all shards in one pass; `empty` creates empty counts."""

    def count_shard(shard: ShardInfo) -> Counts:
        counts = empty()
        for scores in _shard_scores(dataset, shard):
            counts.add(scores)
        return counts

    total = empty()
    for part in map_ordered(count_shard, dataset.manifest.shards, workers):
        total.merge(part)
    return total


def count_scores(dataset: Dataset, workers: int) -> CoarseCounts:
    """First pass over the scores of `dataset`, on `workers` threads.

    Raises:
        InputError: there is no finite score.
    """
    coarse = _count(dataset, CoarseCounts, workers)
    if coarse.finite == 0:
        raise InputError(
            f"none of the {coarse.non_finite:,} scores in {dataset.location} is finite, so there "
            "is nothing to sort or to cut; score the pairs again."
        )
    return coarse


def find_edges(
    dataset: Dataset, coarse: CoarseCounts, levels: int, scheme: Scheme, workers: int
) -> LevelEdges:
    """Find the edges of `levels` levels, in a second pass over the scores counted in `coarse`.

    Raises:
        InputError: there are fewer distinct scores than levels, or, under quantiles, so many equal
            ones that a level would be empty.
    """
    bins = coarse.bins_to_resolve(levels)
    ordered = OrderedScores(coarse, _count(dataset, lambda: FineCounts(bins), workers))
    if ordered.distinct_at_least < levels:
        raise InputError(
            f"{dataset.location} has only {ordered.distinct_at_least} distinct finite scores, too "
            f"few for {levels} levels; give a smaller --levels or more data."
        )
    if scheme == "equal-width":
        least, greatest = ordered.at_rank(0), ordered.at_rank(ordered.count - 1)
        edges = equal_width_edges(least, greatest, levels)
    else:
        edges = quantile_edges(ordered, levels)
        _refuse_empty_levels(level_sizes(ordered, list(edges)), dataset.location)
    return LevelEdges(tuple(edges.tolist()), scheme)


@dataclass(frozen=True, slots=True)
class TopCut:
    """The least of the `wanted` greatest scores; `kept` scores, including ties, are not below
    it.
    """

    score: np.float32
    wanted: int
    kept: int


def find_top_cut(dataset: Dataset, fraction: Fraction, workers: int) -> TopCut:
    """Find the least of the top `fraction` of all finite scores of `dataset`, in two passes.

    Raises:
        InputError: there is no finite score.
    """
    coarse = count_scores(dataset, workers)
    wanted = top_count(fraction, coarse.finite)
    rank = coarse.finite - wanted
    bins = coarse.bins_of_ranks([rank])
    ordered = OrderedScores(coarse, _count(dataset, lambda: FineCounts(bins), workers))
    score = ordered.at_rank(rank)
    return TopCut(score, wanted, ordered.count - ordered.below(score))


def _refuse_empty_levels(sizes: list[int], where: str) -> None:
    empty = [str(level) for level, size in enumerate(sizes, start=1) if size == 0]
    if empty:
        raise InputError(
            f"so many pairs of {where} have equal scores, which share a level, that of "
            f"{len(sizes)} levels {', '.join(empty)} would be empty; give a smaller --levels or "
            "--scheme equal-width."
        )


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
    model = data.get("model")
    return EdgesFile(location, edges, model if isinstance(model, dict) else {})
