"""report: scores and levels of a dataset as one HTML file and figures."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from aligncurate.checks.manifest import open_dataset
from aligncurate.output.folder import input_of, sibling_output
from aligncurate.settings import OnProgress, called_with
from aligncurate.stages.settings import ReportSettings
from alignshared import ContractError, Dataset, InputError, Storage
from alignshared.schema import LEVEL_COLUMN, SCORE_COLUMN, require_columns

if TYPE_CHECKING:
    from aligncurate.reporting.drift import Drift
    from aligncurate.reporting.page import ReportContent

PAGE = "report.html"
HISTOGRAM = "histogram.png"
LEVELS = "levels.png"
GALLERY = "gallery.png"
DRIFT = "drift.png"
_FILES = (PAGE, HISTOGRAM, LEVELS, GALLERY, DRIFT, "drift.html")  # the last from earlier versions

_REJECT_EXAMPLES = 3

_log = logging.getLogger("aligncurate")


@dataclass(frozen=True, slots=True)
class DriftFiles:
    """Comparison with another dataset: its figure, and the changes in plain sentences."""

    against: str
    figure: str
    sentences: list[str]


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Locations of the report's files; a figure without data is None, as is `drift` without another
    dataset.
    """

    dataset: str
    folder: str
    page: str
    histogram: str | None
    levels: str | None
    gallery: str | None
    drift: DriftFiles | None = None


@called_with(ReportSettings)
def report(settings: ReportSettings) -> ReportFiles:
    """Write `report.html`, one file that works offline, and its figures as PNG.

    With `against`, the report gets a section on drift, and `drift.png`; a warning is logged if
    scores of other weights are compared. `output` may hold an earlier report. Every pair is read
    once, and the summary is left beside the manifest, so that no later report reads them again.

    Arguments are the fields of `ReportSettings`, which are also the command's options;
    `on_progress` is called with the number of pairs read.

    Raises:
        InputError: a dataset has no scores, or the folder holds something else.
    """
    from aligncurate.reporting.page import render_page

    dataset, output = input_of(settings, open_dataset), settings.output
    other = None if settings.against is None else open_dataset(settings.against)
    storage = Storage(sibling_output(dataset, "report") if output is None else output)
    if other_names := [name for name in storage.names() if name not in _FILES]:
        raise InputError(
            f"{storage.location} holds {other_names[0]}, which no report wrote; name an empty or "
            "new folder with --output."
        )
    with _naming_damage(dataset):
        content = _gather(dataset, settings.examples, settings.on_progress)
    if other is not None:
        content = replace(content, drift=_compare(content, other, settings.on_progress))
    files = _draw(content)
    for name in _FILES:
        if name in files:
            storage.write_bytes(name, files[name])
        else:
            storage.delete(name)
    # Last, since the page marks the folder as a report.
    storage.write_bytes(PAGE, render_page(content).encode())
    locations = {name: storage.child(name).location for name in (PAGE, *files)}
    drift = content.drift
    return ReportFiles(
        dataset=dataset.location,
        folder=storage.location,
        page=locations[PAGE],
        histogram=locations.get(HISTOGRAM),
        levels=locations.get(LEVELS),
        gallery=locations.get(GALLERY),
        drift=DriftFiles(drift.other.location, locations[DRIFT], drift.sentences)
        if drift
        else None,
    )


@contextmanager
def _naming_damage(dataset: Dataset) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ContractError(
            f"{dataset.location} cannot be read to its end: {error}; aligncurate validate tells "
            "which file is damaged."
        ) from error


def _gather(dataset: Dataset, examples: int, on_progress: OnProgress) -> "ReportContent":
    from aligncurate.reporting.clusters import find_clusters
    from aligncurate.reporting.examples import read_examples, rejected
    from aligncurate.reporting.lineage import ancestors
    from aligncurate.reporting.page import ReportContent
    from aligncurate.reporting.summary import summary_of

    manifest = dataset.manifest
    _require_scores(dataset)
    summary = summary_of(dataset, examples, on_progress)
    lineage = ancestors(dataset)
    readable = [dataset, *(a.dataset for a in lineage if a.dataset)]
    return ReportContent(
        dataset=dataset,
        summary=summary,
        groups=read_examples(dataset, summary.shortlist, examples) if manifest.rows else [],
        rejects=[entry for each in readable for entry in rejected(each, _REJECT_EXAMPLES)],
        lineage=lineage,
        clusters=find_clusters(dataset, lineage),
    )


def _require_scores(dataset: Dataset) -> None:
    manifest = dataset.manifest
    if manifest.shards:
        edges = manifest.level_edges
        needed = ("id", edges.by, LEVEL_COLUMN) if edges else ("id", SCORE_COLUMN)
        require_columns(dataset.schema, needed, dataset.location)


def _compare(content: "ReportContent", other: Dataset, on_progress: OnProgress) -> "Drift":
    from aligncurate.reporting.drift import compare
    from aligncurate.reporting.summary import summary_of

    _require_scores(other)
    with _naming_damage(other):
        summary = summary_of(other, on_progress=on_progress)
        drift = compare(content.dataset, content.summary, other, summary)
    if drift.incomparable:
        _log.warning(
            "the scores of %s and %s are not of one kind: %s.",
            content.dataset.location, other.location, "; ".join(drift.incomparable),
        )  # fmt: skip
    return drift


def _draw(content: "ReportContent") -> dict[str, bytes]:
    """Figures by file name; empty ones are left out."""
    from aligncurate.reporting import figures

    edges, summary, drift = content.dataset.manifest.level_edges, content.summary, content.drift
    drawn = {}
    if summary.histogram.count:
        drawn[HISTOGRAM] = figures.draw_histogram(summary.histogram, edges)
    if summary.levels:
        drawn[LEVELS] = figures.draw_levels(summary.levels, summary.by)
    if any(group.examples for group in content.groups):
        drawn[GALLERY] = figures.draw_gallery(content.groups)
    if drift:
        drawn[DRIFT] = figures.draw_overlay(*drift.histograms, drift.names, edges)
    return {name: figures.png(figure) for name, figure in drawn.items()}
