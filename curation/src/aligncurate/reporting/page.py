"""The report as one HTML file: no script, nothing fetched, every text of the data escaped."""

from dataclasses import dataclass
from typing import Any

from aligncurate.reporting import format as words
from aligncurate.reporting.chart import lay_out
from aligncurate.reporting.clusters import Clusters, cluster_cards
from aligncurate.reporting.gallery import Example, Group
from aligncurate.reporting.inspection import unusual
from aligncurate.reporting.lineage import Ancestor
from aligncurate.reporting.rejected import RejectedFor
from aligncurate.reporting.summary import ScoreSummary
from aligncurate.reporting.template import picture_card, render
from alignshared import Dataset, Manifest
from alignshared.palette import level_colours


@dataclass(frozen=True, slots=True)
class ReportContent:
    """All that a report shows; `rejects` are the dataset's own, then those of its ancestors."""

    dataset: Dataset
    summary: ScoreSummary
    groups: list[Group]
    rejects: list[RejectedFor]
    lineage: list[Ancestor]
    clusters: Clusters | None = None

    @property
    def name(self) -> str:
        """What people call the dataset: `demo` for `data/demo/bucket`."""
        return dataset_name(self.dataset)


def dataset_name(dataset: Dataset) -> str:
    """Name of the folder, or of the folder that holds it where it is called after its stage."""
    *_, parent, folder = ["", *dataset.location.rstrip("/").split("/")]
    return parent if folder == dataset.manifest.stage and parent else folder


def render_page(content: ReportContent) -> str:
    """The HTML of the report."""
    return render("page.html.j2", _context(content))


def _context(content: ReportContent) -> dict[str, Any]:
    manifest, summary = content.dataset.manifest, content.summary
    edges, histogram = manifest.level_edges, summary.histogram
    levels = edges.levels if edges else 0
    return {
        "content": content,
        "manifest": manifest,
        "histogram": histogram if histogram.count else None,
        "chart": lay_out(histogram.bins(), edges, histogram.mean) if histogram.count else None,
        "edges": edges,
        "own_quantiles": _has_own_quantiles(manifest),
        "colours": level_colours(max(levels, 1)),
        "rows": _level_rows(summary),
        "groups": [(group, [_card(e) for e in group.examples]) for group in content.groups],
        "clusters": cluster_cards(content.clusters),
        "reject_total": sum(r.count for r in content.rejects),
        "config": words.flat_config(manifest.config),
        "unusual": unusual(manifest.model) if manifest.model else [],
        "digest": content.dataset.digest,
        "bytes": sum(shard.bytes for shard in manifest.shards),
    }


def _has_own_quantiles(manifest: Manifest) -> bool:
    """Whether the edges are quantiles of these very scores, and so make levels of equal size."""
    given = manifest.config.get("edges")
    return manifest.stage == "bucket" and manifest.scheme == "quantile" and not given


def _level_rows(summary: ScoreSummary) -> list[dict[str, Any]]:
    """The table of levels, the highest first; `bar` is the count in percent of the greatest."""
    most = max((s.count for s in summary.levels), default=1) or 1
    return [
        {"statistics": s, "bar": round(100 * s.count / most, 2)} for s in reversed(summary.levels)
    ]


def _card(example: Example) -> dict[str, Any]:
    return {
        "id": words.clip_middle(example.id),
        "score": words.score_text(example.score),
        "caption": words.clip_text(example.caption),
        **picture_card(example.image),
    }
