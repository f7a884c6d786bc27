"""export: write a dataset in other tools' formats, complete or recognisably unfinished."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from aligncurate.exports.hugging_face import PAIRS_PER_FILE, HuggingFaceExporter
from aligncurate.exports.llava import PAIRS_FILE, PAIRS_PER_FOLDER, LlavaExporter
from aligncurate.exports.spans import Exporter, Span, WrittenSpan, cut_into_spans
from aligncurate.exports.webdataset import PAIRS_PER_TAR, WebdatasetExporter
from aligncurate.output.folder import (
    OutputState,
    config_of,
    input_and_output,
    open_output,
    provenance,
)
from aligncurate.settings import Location, OnProgress, called_with
from aligncurate.stages.settings import ExportSettings, Format
from aligncurate.threads import thread_count
from aligncurate.units.records import read_records, released_if_empty, write_record
from aligncurate.units.run import write_parts
from alignshared import Dataset, InputError, ShardInfo, Storage
from alignshared.manifest import RUN_FOLDER
from alignshared.schema import require_columns
from alignshared.stores.filesystems import last_names

MARKER = "export.json"
"""Written last: a folder without it is an unfinished export."""

AUTHORS_LEVELS = 8
"""Number of levels in the AlignGPT authors' trainer."""

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


@called_with(ExportSettings)
def export(settings: ExportSettings) -> Export:
    """Export the pairs of `input`, in order, to another tool's format.

    `llava` is JSON with images beside it, for the AlignGPT authors' trainer; `webdataset` is
    tars; `hf` is a folder for Hugging Face `datasets` and the Hub; by default in
    `export-<format>` beside the input, with 10,000 pairs, or 1,000 images, in a file or folder.
    `export.json`, with counts, digests and lineage, is written last. An unfinished export is
    resumed; a finished one of the same configuration is left as it is. The number of workers
    changes no byte.

    Arguments are the fields of `ExportSettings`, which are also the command's options;
    `on_progress` is called with the number of pairs written.

    Raises:
        InputError: invalid arguments or unusable folders.
    """
    format, threads = settings.format, thread_count(settings.workers)
    dataset, storage = input_and_output(f"export-{format}", settings, "there is nothing to export")
    require_columns(dataset.schema, ("id", "image", "caption"), dataset.location)
    size = settings.pairs_per_file or _PAIRS_PER_FILE[format]
    config = config_of(dataset, threads, format=format, pairs_per_file=size)
    config["input"] = last_names(dataset.location)  # an export is for others to read
    state = open_output(storage, config, overwrite=settings.overwrite, marker=MARKER)
    if state is OutputState.FINISHED:
        _log.info("%s is finished already; nothing to do.", storage.location)
    else:
        if format == "llava":
            _warn_of_levels(dataset)
        _run(dataset, storage, config, settings.on_progress)
    return read_export(storage.location)


def read_export(location: Location) -> Export:
    """Read the finished export at `location`.

    Raises:
        InputError: the export is missing or unfinished.
    """
    marker = Storage(location).read_json(MARKER)
    try:
        counts = {name: marker[name] for name in ("rows", "pictures", "without_picture")}
        files = [ShardInfo(**file) for file in marker["files"]]
        return Export(Storage(location).location, marker["config"]["format"], files=files, **counts)
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
            _finished_spans(storage),
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
    spans = map(TypeAdapter(WrittenSpan).validate_json, read_records(storage))
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
        "parents": [{"location": config["input"], "sha256": dataset.digest}],
        "stage": manifest.stage,
        "model": None if manifest.model is None else asdict(manifest.model.named()),
        "scheme": manifest.scheme,
        "edges": manifest.edges,
        **({"by": manifest.by} if manifest.by else {}),
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
