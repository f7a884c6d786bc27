"""Drift between two datasets in scores, captions, images and rejects."""

from dataclasses import dataclass

import numpy as np

from aligncurate.core.histogram import (
    BIN_WIDTH,
    Counts,
    Histogram,
    LogHistogram,
    kolmogorov_smirnov,
    population_stability_index,
)
from aligncurate.output.shards import scores_of
from aligncurate.reporting.format import clip_middle, dataset_name, score_text, share_text
from aligncurate.reporting.lineage import ancestors
from aligncurate.reporting.summary import ScoreSummary
from aligncurate.threads import available_cores, map_ordered
from alignshared import Dataset, InputError, LevelEdges, ModelInfo, ShardInfo
from alignshared.schema import SCORE_COLUMN

_BATCH_ROWS = 1 << 19
_TENTHS = 10
_PSI_SMALL, _PSI_LARGE = 0.1, 0.25  # Siddiqi's limits of a stable and of a shifted population
_SAME_MEAN = 0.05  # in standard deviations

SIZES = {
    "caption": "Caption, characters",
    "width": "Image width, pixels",
    "height": "Image height, pixels",
}


@dataclass(frozen=True, slots=True)
class Share:
    """One kind's share of each dataset, from 0 to 1."""

    title: str
    base: float
    other: float

    @property
    def change(self) -> float:
        """Difference of the other dataset's share and the base's."""
        return self.other - self.base


@dataclass(frozen=True, slots=True)
class Drift:
    """Differences of `other` from `base`.

    `shares` are those of the base's levels, with `other` put on the base's edges, or of tenths
    of the base's scores without levels; `psi` is computed from them. `distance` is the
    Kolmogorov-Smirnov distance of the scores, `size_distances` those of the sizes in both.
    `rejects` are shares of all input pairs. `incomparable` explains why the two kinds of scores
    differ.
    """

    base: Dataset
    other: Dataset
    summaries: tuple[ScoreSummary, ScoreSummary]
    psi: float
    distance: float
    shares: list[Share]
    size_distances: dict[str, float]
    rejects: Share
    incomparable: list[str]

    @property
    def names(self) -> tuple[str, str]:
        """Names of both datasets, or their locations if the names are equal."""
        base, other = dataset_name(self.base), dataset_name(self.other)
        if base == other:
            base, other = self.base.location, self.other.location
        return clip_middle(base, 80), clip_middle(other, 80)

    @property
    def histograms(self) -> tuple[Histogram, Histogram]:
        """Scores of both datasets, in the same bins."""
        return _in_same_bins(*self.summaries)

    @property
    def edges(self) -> LevelEdges | None:
        """The base's edges."""
        return self.base.manifest.level_edges

    @property
    def psi_word(self) -> str:
        """`small`, `moderate` or `large`, by the usual PSI limits."""
        return (
            "small" if self.psi < _PSI_SMALL else "moderate" if self.psi < _PSI_LARGE else "large"
        )

    @property
    def sentences(self) -> list[str]:
        """Changes from the base to the other dataset, most important first."""
        sentences = [_score_sentence(self), _share_sentence(self)]
        if not self.incomparable:
            return sentences
        warning = (
            f"The scores of the two are not of one kind: {'; '.join(self.incomparable)}. The "
            "differences below show that as much as a change of the data."
        )
        return [warning, *sentences]


def compare(
    base: Dataset, base_summary: ScoreSummary, other: Dataset, other_summary: ScoreSummary
) -> Drift:
    """Compare `other` with `base`.

    Raises:
        InputError: one of them has no finite score.
    """
    for dataset, summary in ((base, base_summary), (other, other_summary)):
        if not summary.histogram.count:
            raise InputError(
                f"{dataset.location} has no finite score, so there is nothing to compare; name "
                "another dataset."
            )
    if base_summary.by != other_summary.by:
        raise InputError(
            f"the levels of {base.location} part {base_summary.by} and {other.location} has "
            f"{other_summary.by}, which cannot be compared; run aligncurate bucket --by "
            f"{base_summary.by} on the other."
        )
    scores, other_scores = _in_same_bins(base_summary, other_summary)
    titles, in_base, in_other = _level_counts(base, base_summary, other, other_summary)
    sizes, other_sizes = base_summary.sizes, other_summary.sizes
    return Drift(
        base=base,
        other=other,
        summaries=(base_summary, other_summary),
        psi=population_stability_index(in_base, in_other),
        distance=kolmogorov_smirnov(scores.counts, other_scores.counts),
        shares=[
            Share(title, float(x / in_base.sum()), float(y / in_other.sum()))
            for title, x, y in zip(titles, in_base, in_other, strict=True)
        ],
        size_distances={
            name: kolmogorov_smirnov(sizes[name].counts, other_sizes[name].counts)
            for name in SIZES
            if sizes[name].moment.count and other_sizes[name].moment.count
        },
        rejects=Share("Rejects", _reject_share(base), _reject_share(other)),
        incomparable=_incomparable(*(d.manifest.scorer(base_summary.by) for d in (base, other))),
    )


def _level_counts(
    base: Dataset, base_summary: ScoreSummary, other: Dataset, other_summary: ScoreSummary
) -> tuple[list[str], Counts, Counts]:
    """Titles and counts of the base's levels or tenths, lowest scores first."""
    edges = base.manifest.level_edges
    if edges:
        titles = [str(level) for level in range(1, edges.levels + 1)]
        return titles, _counts_of(base_summary), _counts_on(edges, other, other_summary)
    fine = base_summary.histogram.counts
    ranks = np.arange(1, _TENTHS) * base_summary.histogram.count / _TENTHS
    cuts = np.unique([0, *np.searchsorted(np.cumsum(fine), ranks, side="right")])
    titles = [f"{-1 + cut * BIN_WIDTH:.4f}" for cut in cuts]
    other_fine = other_summary.histogram.counts
    return titles, np.add.reduceat(fine, cuts), np.add.reduceat(other_fine, cuts)


def _in_same_bins(base: ScoreSummary, other: ScoreSummary) -> tuple[Histogram, Histogram]:
    power = max(base.histogram.power, other.histogram.power)
    return base.histogram.widened(power), other.histogram.widened(power)


def _counts_of(summary: ScoreSummary) -> Counts:
    return np.array([s.count for s in summary.levels], dtype=np.int64)


def _counts_on(edges: LevelEdges, dataset: Dataset, summary: ScoreSummary) -> Counts:
    """Pairs of `dataset` in each level of `edges`."""
    if dataset.manifest.level_edges == edges:
        return _counts_of(summary)

    # Bins of the histogram do not end at edges, so scores are read.
    def count(shard: ShardInfo) -> Counts:
        counts = np.zeros(edges.levels, dtype=np.int64)
        with dataset.open_shard(shard) as parquet:
            for batch in dataset.shard_batches(shard, parquet, [edges.by], _BATCH_ROWS):
                scores = scores_of(batch, edges.by)
                levels = edges.assign(scores[np.isfinite(scores)])
                counts += np.bincount(levels - 1, minlength=edges.levels)
        return counts

    return np.sum(list(map_ordered(count, dataset.manifest.shards, available_cores())), axis=0)


def _reject_share(dataset: Dataset) -> float:
    """Share of all input pairs rejected by `dataset` or an ancestor."""
    manifests = [dataset.manifest, *(a.manifest for a in ancestors(dataset) if a.manifest)]
    rejects = sum(manifest.reject_count for manifest in manifests)
    return rejects / max(dataset.manifest.rows + rejects, 1)


def _incomparable(base: ModelInfo | None, other: ModelInfo | None) -> list[str]:
    """Reason why the scores of two datasets are not comparable."""
    if base is None or other is None:
        return ["it is not recorded which model gave the scores of both"]
    reasons: list[str] = []
    if base.weights_sha256 != other.weights_sha256:
        models = (f"{m.name}, {m.weights}, {m.weights_sha256[:8]}" for m in (base, other))
        reasons.append(f"other weights gave them ({' and '.join(models)})")
    if base.view != other.view:
        views = (m.view or "the model's own way" for m in (base, other))
        reasons.append(f"images were framed otherwise ({' and '.join(views)})")
    if base.long_captions != other.long_captions:
        reasons.append("long captions were treated otherwise")
    return reasons


def _score_sentence(drift: Drift) -> str:
    a, b = drift.histograms
    base, other = drift.names
    by, means = drift.summaries[0].by, f"{score_text(b.mean)} against {score_text(a.mean)}"
    deviation = a.moment.std or 0.0
    step = (b.mean - a.mean) / deviation if deviation else b.mean - a.mean
    if abs(step) < _SAME_MEAN:
        return f"The mean {by} of {other} is nearly that of {base}: {means}."
    far = f", by {abs(step):.2f} standard deviations" if deviation else ""
    way = "higher" if step > 0 else "lower"
    return f"The mean {by} of {other} is {way} than that of {base}{far}: {means}."


def _share_sentence(drift: Drift) -> str:
    over = f"{len(drift.shares)} levels" if drift.edges else "tenths of its scores"
    sentence = f"Over {drift.names[0]}’s {over} the shift is {drift.psi_word} (PSI {drift.psi:.3f})"
    most = max(drift.shares, key=lambda share: abs(share.change))
    if not most.change:
        return f"{sentence}: all of them have the same shares."
    part = f"level {most.title}" if drift.edges else f"the tenth from {most.title} on"
    return (
        f"{sentence}; {part} changed most, from {share_text(most.base)} to "
        f"{share_text(most.other)} of the pairs."
    )


def comparison_rows(drift: Drift) -> list[tuple[str, str, str, str]]:
    """Rows of the page's table as text: title, both datasets' numbers, distance."""
    a, b = drift.summaries
    means = (score_text(a.histogram.mean), score_text(b.histogram.mean))
    by = "Score" if a.by == SCORE_COLUMN else a.by
    rows = [(f"{by}, mean", *means, score_text(drift.distance, 3))]
    rows += [
        (
            f"{title}, median",
            _median_text(a.sizes[name]),
            _median_text(b.sizes[name]),
            score_text(drift.size_distances.get(name), 3),
        )
        for name, title in SIZES.items()
    ]
    rejects = drift.rejects
    return [*rows, (rejects.title, share_text(rejects.base), share_text(rejects.other), "")]


def _median_text(sizes: LogHistogram) -> str:
    return "\N{EN DASH}" if sizes.median is None else f"{sizes.median:,}"
