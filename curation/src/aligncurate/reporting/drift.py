"""Two datasets side by side: how the scores, the captions, the pictures and the rejects of one
differ from those of another.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from aligncurate.core.drift import (
    Counts,
    kolmogorov_smirnov,
    population_stability_index,
    wasserstein_1,
)
from aligncurate.core.histogram import BIN_WIDTH
from aligncurate.core.sizes import SizeCounts
from aligncurate.reporting.lineage import ancestors
from aligncurate.reporting.page import dataset_name
from aligncurate.reporting.summary import ScoreSummary, score_values
from aligncurate.threads import available_cores, map_ordered
from alignshared import Dataset, InputError, LevelEdges, ModelInfo, ShardInfo

_BATCH_ROWS = 1 << 19
_TENTHS = 10

SIZE_TITLES = {
    "caption": "Caption, characters",
    "width": "Picture width, pixels",
    "height": "Picture height, pixels",
}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two datasets; `rejects` counts those of its ancestors as well."""

    dataset: Dataset
    name: str
    summary: ScoreSummary
    rejects: dict[str, int]

    @property
    def rows_in(self) -> int:
        """Pairs of the dataset and rejects on the way to it."""
        return self.dataset.manifest.rows + sum(self.rejects.values())


@dataclass(frozen=True, slots=True)
class Share:
    """What part of each side, from 0 to 1, is of one kind."""

    title: str
    base: float
    other: float

    @property
    def change(self) -> float:
        """How much more of the other side it is."""
        return self.other - self.base


@dataclass(frozen=True, slots=True)
class SizeShift:
    """Lengths of captions or of sides of pictures on both sides, and their Kolmogorov-Smirnov
    distance; None if one side has none.
    """

    title: str
    base: SizeCounts
    other: SizeCounts
    distance: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """How `other` differs from `base`.

    `shares` are those of the base's levels, with `other` put on the base's edges, or of tenths of
    the base's scores where it has no levels; `psi` is taken over them. `distance` is the
    Kolmogorov-Smirnov distance of the scores and `wasserstein` their Wasserstein-1 distance in
    score. `incomparable` says why the scores of the two are of different kinds.
    """

    base: Side
    other: Side
    psi: float
    distance: float
    wasserstein: float
    shares: list[Share]
    sizes: list[SizeShift]
    rejects: list[Share]
    incomparable: list[str]

    @property
    def on_levels(self) -> bool:
        """Whether the base has levels."""
        return self.base.dataset.manifest.level_edges is not None


def compare(base: Dataset, ours: ScoreSummary, other: Dataset, theirs: ScoreSummary) -> Drift:
    """Compare `other`, of which the summary is `theirs`, with `base`, of which it is `ours`.

    Raises:
        InputError: one of them has no finite score.
    """
    for dataset, summary in ((base, ours), (other, theirs)):
        if not summary.histogram.count:
            raise InputError(
                f"{dataset.location} has no finite score, so there is nothing to compare; name "
                "another dataset."
            )
    names = _names(base, other)
    a = Side(base, names[0], ours, _rejects(base))
    b = Side(other, names[1], theirs, _rejects(other))
    titles, in_base, in_other = _binned(a, b)
    p, q = ours.histogram.counts, theirs.histogram.counts
    return Drift(
        base=a,
        other=b,
        psi=population_stability_index(in_base, in_other),
        distance=kolmogorov_smirnov(p, q),
        wasserstein=wasserstein_1(p, q, BIN_WIDTH),
        shares=[
            Share(title, float(x / in_base.sum()), float(y / in_other.sum()))
            for title, x, y in zip(titles, in_base, in_other, strict=True)
        ],
        sizes=[
            _size_shift(title, ours.sizes[name], theirs.sizes[name])
            for name, title in SIZE_TITLES.items()
        ],
        rejects=_reject_shares(a, b),
        incomparable=_incomparable(base.manifest.model, other.manifest.model),
    )


def _names(base: Dataset, other: Dataset) -> tuple[str, str]:
    names = dataset_name(base), dataset_name(other)
    return names if names[0] != names[1] else (base.location, other.location)


def _rejects(dataset: Dataset) -> dict[str, int]:
    found = Counter(dataset.manifest.rejects)
    for ancestor in ancestors(dataset):
        if ancestor.manifest:
            found.update(ancestor.manifest.rejects)
    return dict(found)


def _binned(base: Side, other: Side) -> tuple[list[str], Counts, Counts]:
    """Titles and counts of the base's levels or tenths, from the lowest scores upwards."""
    edges = base.dataset.manifest.level_edges
    if edges:
        counts = np.array([s.count for s in base.summary.levels], dtype=np.int64)
        titles = [str(level) for level in range(1, edges.levels + 1)]
        return titles, counts, _count_levels(other, edges)
    fine = base.summary.histogram.counts
    ranks = np.arange(1, _TENTHS) * base.summary.histogram.count / _TENTHS
    cuts = np.unique([0, *np.searchsorted(np.cumsum(fine), ranks, side="right")])
    titles = [f"{-1 + cut * BIN_WIDTH:.4f}" for cut in cuts]
    theirs = other.summary.histogram.counts
    return titles, np.add.reduceat(fine, cuts), np.add.reduceat(theirs, cuts)


def _count_levels(side: Side, edges: LevelEdges) -> Counts:
    """How many pairs of `side` each level of `edges` would hold; bins of the histogram are not
    parted where the edges are, so scores are read unless the dataset lies on these edges.
    """
    if side.dataset.manifest.level_edges == edges:
        return np.array([s.count for s in side.summary.levels], dtype=np.int64)
    dataset = side.dataset

    def count(shard: ShardInfo) -> Counts:
        found = np.zeros(edges.levels, dtype=np.int64)
        with dataset.open_shard(shard) as parquet:
            for batch in dataset.shard_batches(shard, parquet, ["score"], _BATCH_ROWS):
                scores = score_values(batch)
                levels = edges.assign(scores[np.isfinite(scores)])
                found += np.bincount(levels - 1, minlength=edges.levels)
        return found

    total = np.zeros(edges.levels, dtype=np.int64)
    for part in map_ordered(count, dataset.manifest.shards, available_cores()):
        total += part
    return total


def _size_shift(title: str, base: SizeCounts, other: SizeCounts) -> SizeShift:
    some = base.moment.count and other.moment.count
    distance = kolmogorov_smirnov(base.counts, other.counts) if some else None
    return SizeShift(title, base, other, distance)


def _reject_shares(base: Side, other: Side) -> list[Share]:
    """The rejects by reason, those with the greatest change first."""
    shares = [
        Share(
            reason,
            base.rejects.get(reason, 0) / max(base.rows_in, 1),
            other.rejects.get(reason, 0) / max(other.rows_in, 1),
        )
        for reason in base.rejects.keys() | other.rejects.keys()
    ]
    return sorted(shares, key=lambda share: (-abs(share.change), share.title))


def _incomparable(base: ModelInfo | None, other: ModelInfo | None) -> list[str]:
    """Why the scores of two datasets are not of one kind."""
    if base is None or other is None:
        return ["it is not recorded which model gave the scores of both"]
    found: list[str] = []
    if base.weights_sha256 != other.weights_sha256:
        found.append(f"other weights gave them ({_called(base)} and {_called(other)})")
    if base.view != other.view:
        found.append(f"pictures were framed otherwise ({_view(base)} and {_view(other)})")
    if base.long_captions != other.long_captions:
        found.append("long captions were treated otherwise")
    return found


def _called(model: ModelInfo) -> str:
    return f"{model.name}, {model.weights}, {model.weights_sha256[:8]}"


def _view(model: ModelInfo) -> str:
    return model.view or "the model's own way"
