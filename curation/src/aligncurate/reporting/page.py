"""The report as one HTML file, without scripts or external resources; data is escaped."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from aligncurate.reporting import figures
from aligncurate.reporting.clusters import Clusters
from aligncurate.reporting.drift import Drift, comparison_rows
from aligncurate.reporting.examples import Group, RejectedFor
from aligncurate.reporting.format import dataset_name, flat_config
from aligncurate.reporting.inspection import unusual
from aligncurate.reporting.lineage import Ancestor
from aligncurate.reporting.summary import ScoreSummary
from aligncurate.reporting.template import pair_card, render
from alignshared import Dataset, Manifest
from alignshared.palette import level_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class ReportContent:
    """Content of a report; `rejects` are the dataset's own, then its ancestors'."""

    dataset: Dataset
    summary: ScoreSummary
    groups: list[Group]
    rejects: list[RejectedFor]
    lineage: list[Ancestor]
    clusters: Clusters | None
    drift: Drift | None = None

    @property
    def name(self) -> str:
        """Name of the dataset in the heading."""
        return dataset_name(self.dataset)


def render_page(content: ReportContent) -> str:
    """Render the report as HTML."""
    return render("page.html.j2", _context(content))


def _context(content: ReportContent) -> dict[str, Any]:
    manifest, summary = content.dataset.manifest, content.summary
    edges, histogram = manifest.level_edges, summary.histogram
    levels = edges.levels if edges else 0
    return {
        "content": content,
        "manifest": manifest,
        "histogram": histogram if histogram.count else None,
        "plots": _plots(lambda size: figures.draw_histogram(histogram, edges, size))
        if histogram.count
        else [],
        "edges": edges,
        "own_quantiles": _has_own_quantiles(manifest),
        "colours": level_colours(max(levels, 1)),
        "rows": _level_rows(summary),
        "groups": [
            (group, [pair_card(e.id, e.caption, e.score, e.image) for e in group.examples])
            for group in content.groups
        ],
        **_drift_context(content.drift),
        "reject_total": sum(r.count for r in content.rejects),
        "config": flat_config(manifest.config),
        "unusual": unusual(manifest.model) if manifest.model else [],
        "digest": content.dataset.digest,
        "bytes": sum(shard.bytes for shard in manifest.shards),
    }


def _plots(draw: Callable[[tuple[float, float]], "Figure"]) -> list[Markup]:
    """Figures for wide and narrow screens."""
    return [Markup(figures.svg(draw(size))) for size in (figures.WIDE, figures.NARROW)]


def _drift_context(drift: Drift | None) -> dict[str, Any]:
    if drift is None:
        return {"drift": None}
    return {
        "drift": drift,
        "comparison": comparison_rows(drift),
        "overlays": _plots(
            lambda size: figures.draw_overlay(*drift.histograms, drift.names, drift.edges, size)
        ),
    }


def _has_own_quantiles(manifest: Manifest) -> bool:
    """Whether the edges are quantiles of these scores, so that levels have equal sizes."""
    given_edges = manifest.config.get("edges")
    return manifest.stage == "bucket" and manifest.scheme == "quantile" and not given_edges


def _level_rows(summary: ScoreSummary) -> list[dict[str, Any]]:
    """Rows of the table of levels, highest first; `bar` is the count in percent of the greatest."""
    most = max((s.count for s in summary.levels), default=1) or 1
    return [
        {"statistics": s, "bar": round(100 * s.count / most, 2)} for s in reversed(summary.levels)
    ]
