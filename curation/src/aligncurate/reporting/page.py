"""The report as one HTML file, without scripts or external resources; data is escaped."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from alignshared import Dataset
from alignshared.palette import level_colours
from alignshared.schema import SCORE_COLUMN

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
    manifest, summary, drift = content.dataset.manifest, content.summary, content.drift
    edges, histogram = manifest.level_edges, summary.histogram
    own_quantiles = manifest.stage == "bucket" and manifest.scheme == "quantile"
    context = {
        "content": content,
        "manifest": manifest,
        "histogram": histogram if histogram.count else None,
        "plots": _plots(lambda size: figures.draw_histogram(histogram, edges, size))
        if histogram.count
        else [],
        "edges": edges,
        "by": None if summary.by == SCORE_COLUMN else summary.by,
        # Edges that are quantiles of these scores make levels of equal size.
        "own_quantiles": own_quantiles and not manifest.config.get("edges"),
        "colours": level_colours(edges.levels if edges else 1),
        "levels": summary.levels,
        "most_in_a_level": max((s.count for s in summary.levels), default=1) or 1,
        "groups": [
            (group, [pair_card(e.id, e.caption, e.score, e.image) for e in group.examples])
            for group in content.groups
        ],
        "drift": drift,
        "comparison": comparison_rows(drift) if drift else [],
        "overlays": _plots(
            lambda size: figures.draw_overlay(*drift.histograms, drift.names, drift.edges, size)
        )
        if drift
        else [],
        "reject_total": sum(r.count for r in content.rejects),
        "config": flat_config(manifest.config),
        "unusual": unusual(manifest.model) if manifest.model else [],
        "digest": content.dataset.digest,
        "bytes": sum(shard.bytes for shard in manifest.shards),
    }
    return render("page.html.j2", context)


def _plots(draw: Callable[[tuple[float, float]], "Figure"]) -> list[Markup]:
    """Figures for wide and narrow screens."""
    return [Markup(figures.svg(draw(size))) for size in (figures.WIDE, figures.NARROW)]
