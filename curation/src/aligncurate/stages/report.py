"""report: what a dataset's scores and levels look like, as one HTML file and as figures."""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from aligncurate.checks.manifest import open_dataset
from aligncurate.places import newest_dataset, sibling_output
from aligncurate.progress import OnProgress, silent
from alignshared import ContractError, Dataset, InputError, Storage
from alignshared.schema import LEVEL_COLUMN, require_columns

if TYPE_CHECKING:
    from aligncurate.reporting.page import ReportContent

PAGE = "report.html"
HISTOGRAM = "histogram.png"
LEVELS = "levels.png"
GALLERY = "gallery.png"
_FILES = (PAGE, HISTOGRAM, LEVELS, GALLERY)

_REJECT_EXAMPLES = 3

Location = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where the report lies; a figure is None where the dataset has nothing to draw in it."""

    dataset: str
    folder: str
    page: str
    histogram: str | None
    levels: str | None
    gallery: str | None


def report(
    input: Location | None = None,
    output: Location | None = None,
    *,
    examples: int = 8,
    cut: float | None = None,
    on_progress: OnProgress = silent,
) -> ReportFiles:
    """Write `report.html`, one file that opens offline, and its figures as PNG.

    Args:
        input: a scored or levelled dataset; by default the newest one under `data/`.
        output: a folder of an earlier report or a new one; by default `report` beside `input`.
        examples: pairs to show of each level; the same ones every time.
        cut: a score, to tell how many pairs lie at or above it, in all and in each level.
        on_progress: called with the number of pairs read; every pair is read twice, and once more
            for `cut`.

    Raises:
        InputError: the dataset has no scores, or the folder holds something else.
    """
    from aligncurate.reporting.page import render_page

    if examples < 1:
        raise InputError(f"--examples {examples} cannot be: give 1 or more.")
    if cut is not None and not math.isfinite(cut):
        raise InputError(f"--cut {cut} cannot be: give a score.")
    found = newest_dataset("bucket", "score").location if input is None else input
    dataset = open_dataset(found)
    storage = Storage(sibling_output(dataset, "report") if output is None else output)
    _refuse_foreign(storage)
    try:
        content = _gather(dataset, examples, cut, on_progress)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ContractError(
            f"{dataset.location} cannot be read to its end: {error}; aligncurate validate tells "
            "which file is damaged."
        ) from error
    pictures = _draw(content)
    for name in _FILES:
        if name in pictures:
            storage.write_bytes(name, pictures[name])
        else:
            storage.delete(name)
    # Last, since the page is what marks the folder as a report.
    storage.write_bytes(PAGE, render_page(content).encode())
    places = {name: storage.child(name).location for name in (PAGE, *pictures)}
    return ReportFiles(
        dataset=dataset.location,
        folder=storage.location,
        page=places[PAGE],
        histogram=places.get(HISTOGRAM),
        levels=places.get(LEVELS),
        gallery=places.get(GALLERY),
    )


def _refuse_foreign(storage: Storage) -> None:
    names = storage.names()
    if names and not set(names) <= set(_FILES):
        other = next(name for name in names if name not in _FILES)
        raise InputError(
            f"{storage.location} holds {other}, which no report wrote; name an empty or new folder "
            "with --output."
        )


def _gather(
    dataset: Dataset, examples: int, cut: float | None, on_progress: OnProgress
) -> "ReportContent":
    from aligncurate.reporting.clusters import find_clusters
    from aligncurate.reporting.cut import count_cut
    from aligncurate.reporting.gallery import choose_examples
    from aligncurate.reporting.lineage import ancestors
    from aligncurate.reporting.page import ReportContent
    from aligncurate.reporting.rejected import rejected
    from aligncurate.reporting.summary import summarise_scores

    manifest = dataset.manifest
    if manifest.shards:
        needed = ("id", "score", LEVEL_COLUMN) if manifest.level_edges else ("id", "score")
        require_columns(dataset.schema, needed, dataset.location)
    summary = summarise_scores(dataset, on_progress)
    lineage = ancestors(dataset)
    kept = [dataset, *(a.dataset for a in lineage if a.dataset)]
    return ReportContent(
        dataset=dataset,
        summary=summary,
        groups=choose_examples(dataset, summary.histogram, examples, on_progress)
        if manifest.rows
        else [],
        rejects=[entry for one in kept for entry in rejected(one, _REJECT_EXAMPLES)],
        lineage=lineage,
        clusters=find_clusters(dataset, lineage),
        cut=None if cut is None else count_cut(dataset, cut, on_progress),
    )


def _draw(content: "ReportContent") -> dict[str, bytes]:
    """The figures by file name; those without anything to show are left out."""
    from aligncurate.reporting import figures

    edges, summary = content.dataset.manifest.level_edges, content.summary
    pictures = {}
    if summary.histogram.count:
        pictures[HISTOGRAM] = figures.histogram_png(summary.histogram, edges)
    if summary.levels:
        pictures[LEVELS] = figures.levels_png(summary.levels)
    if any(group.examples for group in content.groups):
        pictures[GALLERY] = figures.gallery_png(content.groups)
    return pictures
