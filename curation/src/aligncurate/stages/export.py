"""export: write a dataset in other tools' formats, complete or recognisably unfinished."""

import logging
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from aligncurate.exports.hugging_face import PAIRS_PER_FILE, HuggingFaceExporter
from aligncurate.exports.llava import PAIRS_FILE, PAIRS_PER_FOLDER, LlavaExporter
from aligncurate.exports.spans import Exporter, Span, WrittenSpan, cut_into_spans
from aligncurate.exports.webdataset import PAIRS_PER_TAR, WebdatasetExporter
from aligncurate.output.folder import (
    RUN_FOLDER,
    OutputState,
    config_of,
    input_and_output,
    open_output,
    provenance,
)
from aligncurate.progress import OnProgress, silent
from aligncurate.settings import Location, require_at_least, require_one_of
from aligncurate.threads import thread_count
from aligncurate.units.records import read_records, released_if_empty, write_record
from aligncurate.units.run import write_parts
from alignshared import Dataset, InputError, ShardInfo, Storage
from alignshared.schema import require_columns

MARKER = "export.json"
"""Written last: a folder without it is an unfinished export."""

EXPORTED_STAGES = ("sample", "filter", "bucket")
"""Stages whose newest dataset under `data/` is the default input."""

AUTHORS_LEVELS = 8
"""Number of levels in the AlignGPT authors' trainer."""

Format = Literal["llava", "webdataset", "hf"]

_PAIRS_PER_FILE = {"llava": PAIRS_PER_FOLDER, "webdataset": PAIRS_PER_TAR, "hf": PAIRS_PER_FILE}

_log = logging.getLogger("aligncurate")


@dataclass(frozen=True, slots=True)
class Export:
    """A finished export: `files` are listed in the marker, `pictures` counts separate image
    files.
    """

    location: str
    format: Format
    rows: int
    pictures: int
    without_picture: int
    files: list[ShardInfo]


def export(
    input: Location | None = None,
    output: Location | None = None,
    *,
    format: Format,
    pairs_per_file: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> Export:
    """Export the pairs of `input`, in order, to another tool's format.

    `llava` is JSON with images beside it, for the AlignGPT authors' trainer; `webdataset` is
    tars; `hf` is a folder for Hugging Face `datasets` and the Hub. `export.json`, with counts,
    digests and lineage, is written last. An unfinished export is resumed; a finished one of the
    same configuration is left as it is.

    Args:
        input: a dataset; by default the newest sampled, filtered or levelled one under `data/`.
        output: a new folder; by default `export-<format>` beside `input`.
        format: `llava`, `webdataset` or `hf`.
        pairs_per_file: pairs in a tar or Parquet file, or in a folder of images; by default
            10,000, and 1,000 images.
        workers: threads, by default one per core; their number changes no byte.
        overwrite: replace an export in `output`, finished or not.
        on_progress: called with the number of pairs written.

    Raises:
        InputError: invalid arguments or unusable folders.
    """
    require_one_of("--format", format, get_args(Format))
    require_at_least(1, pairs_per_file=pairs_per_file)
    threads = thread_count(workers)
    dataset, storage = input_and_output(f"export-{format}", input, output, EXPORTED_STAGES)
    if dataset.manifest.rows == 0:
        raise InputError(f"{dataset.location} is empty, so there is nothing to export.")
    require_columns(dataset.schema, ("id", "image", "caption"), dataset.location)
    size = pairs_per_file or _PAIRS_PER_FILE[format]
    config = config_of(dataset, threads, format=format, pairs_per_file=size)
    if open_output(storage, config, overwrite=overwrite, marker=MARKER) is OutputState.FINISHED:
        _log.info("%s is finished already; nothing to do.", storage.location)
        return read_export(storage.location)
    if format == "llava":
        _warn_of_levels(dataset)
    _run(dataset, storage, config, on_progress)
    return read_export(storage.location)


def read_export(location: Location) -> Export:
    """Read the finished export at `location`.

    Raises:
        InputError: the export is missing or unfinished.
    """
    marker = Storage(location).read_json(MARKER)
    try:
        return Export(
            location=Storage(location).location,
            format=marker["config"]["format"],
            rows=marker["rows"],
            pictures=marker["pictures"],
            without_picture=marker["without_picture"],
            files=[ShardInfo(**file) for file in marker["files"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{MARKER} in {Storage(location).location} is not of an export; export again."
        ) from error


def _run(
    dataset: Dataset, storage: Storage, config: dict[str, Any], on_progress: OnProgress
) -> None:
    spans = cut_into_spans(dataset.manifest.rows, config["pairs_per_file"])
    exporter = _exporter(config["format"], dataset, len(spans))

    def write(span: Span) -> WrittenSpan:
        written = exporter.write(span, storage)
        write_record(storage, span.index, asdict(written))
        return written

    with released_if_empty(storage):
        written = write_parts(
            storage,
            spans,
            {span.index: span for span in _finished_spans(storage)},
            write,
            workers=config["execution"]["workers"],
            on_progress=on_progress,
        )
        files = exporter.finish(storage, written)
        storage.write_json(MARKER, _marker(dataset, config, written, files))
        storage.delete(RUN_FOLDER)


def _exporter(format: Format, dataset: Dataset, spans: int) -> Exporter:
    if format == "llava":
        return LlavaExporter(dataset)
    if format == "webdataset":
        return WebdatasetExporter(dataset, spans)
    return HuggingFaceExporter(dataset, spans)


def _finished_spans(storage: Storage) -> list[WrittenSpan]:
    """Spans finished by an earlier run whose files still exist."""
    spans: list[WrittenSpan] = []
    for record in read_records(storage):
        files = [ShardInfo(**file) for file in record.pop("files")]
        spans.append(WrittenSpan(files=files, **record))
    return [span for span in spans if all(storage.exists(file.file) for file in span.files)]


def _marker(
    dataset: Dataset, config: dict[str, Any], spans: list[WrittenSpan], files: list[ShardInfo]
) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "rows": sum(span.rows for span in spans),
        "pictures": sum(span.pictures for span in spans),
        "without_picture": sum(span.without_picture for span in spans),
        "files": [asdict(file) for file in files],
        "config": config,
        "parents": [{"location": dataset.location, "sha256": dataset.digest}],
        "stage": manifest.stage,
        "model": None if manifest.model is None else asdict(manifest.model),
        "scheme": manifest.scheme,
        "edges": manifest.edges,
        **provenance(),
    }


def _warn_of_levels(dataset: Dataset) -> None:
    edges = dataset.manifest.level_edges
    if edges is None:
        _log.warning(
            "%s has no levels, so %s has no `similarity`, which pre-training on it needs; run "
            "aligncurate bucket first.",
            dataset.location, PAIRS_FILE,
        )  # fmt: skip
    elif edges.levels != AUTHORS_LEVELS:
        _log.warning(
            "%s has %d levels and the trainer of AlignGPT's authors has %d; train with one whose "
            "number of levels can be set, or export %d levels.",
            dataset.location, edges.levels, AUTHORS_LEVELS, AUTHORS_LEVELS,
        )  # fmt: skip
