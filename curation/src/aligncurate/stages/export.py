"""export: a dataset in a format that others read, whole or recognisably not."""

import logging
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from aligncurate.exports.hugging_face import PAIRS_PER_FILE, HuggingFaceExporter
from aligncurate.exports.llava import PAIRS_FILE, PAIRS_PER_FOLDER, LlavaExporter
from aligncurate.exports.spans import (
    Exporter,
    Span,
    WrittenFile,
    WrittenSpan,
    cut_into_spans,
)
from aligncurate.exports.webdataset import PAIRS_PER_TAR, WebdatasetExporter
from aligncurate.output.folder import (
    RUN_FOLDER,
    OutputState,
    open_output,
    provenance,
)
from aligncurate.output.locations import newest_dataset, refuse_to_write_over, sibling_output
from aligncurate.progress import OnProgress, silent
from aligncurate.threads import available_cores, map_ordered
from aligncurate.units.records import released_if_empty
from alignshared import Dataset, InputError, Storage
from alignshared.schema import require_columns

MARKER = "export.json"
"""Written last: a folder without it is an unfinished export."""

EXPORTED_STAGES = ("sample", "filter", "bucket")
"""Of which the newest under `data/` is meant where no input is named."""

AUTHORS_LEVELS = 8
"""How many levels the trainer of AlignGPT's authors has."""

Format = Literal["llava", "webdataset", "hf"]
Location = str | os.PathLike[str]

_PAIRS_PER_FILE = {"llava": PAIRS_PER_FOLDER, "webdataset": PAIRS_PER_TAR, "hf": PAIRS_PER_FILE}
_SPANS_FOLDER = f"{RUN_FOLDER}/spans"

_log = logging.getLogger("aligncurate")


@dataclass(frozen=True, slots=True)
class Export:
    """A finished export: `files` are those that the marker lists, `pictures` the files beside."""

    location: str
    format: Format
    rows: int
    pictures: int
    without_picture: int
    files: list[WrittenFile]


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
    """Write the pairs of `input`, in their order, as others read them.

    `llava` is JSON with the pictures beside it, as the trainer of AlignGPT's authors takes it;
    `webdataset` is tars; `hf` is a folder for Hugging Face `datasets` and the Hub. `export.json`,
    with counts, digests and lineage, is written last. An unfinished export is gone on with, a
    finished one of the same configuration is left as it is.

    Args:
        input: a dataset; by default the newest sampled, filtered or levelled one under `data/`.
        output: a new folder; by default `export-<format>` beside `input`.
        format: `llava`, `webdataset` or `hf`.
        pairs_per_file: pairs in a tar or Parquet file, or in a folder of pictures; by default
            10,000, and 1,000 pictures.
        workers: threads, by default one per core; their number changes no byte.
        overwrite: replace an export in `output`, finished or not.
        on_progress: called with the number of pairs written.

    Raises:
        InputError: the arguments or the folders cannot be used as they are.
    """
    if format not in get_args(Format):
        raise InputError(f"--format {format} is unknown; give {', '.join(get_args(Format))}.")
    for option, value in (("--pairs-per-file", pairs_per_file), ("--workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} cannot be; give 1 or more.")
    dataset = newest_dataset(*EXPORTED_STAGES) if input is None else Dataset(input)
    storage = Storage(sibling_output(dataset, f"export-{format}") if output is None else output)
    refuse_to_write_over(storage.location, dataset.location)
    if dataset.manifest.rows == 0:
        raise InputError(f"{dataset.location} is empty, so there is nothing to export.")
    require_columns(dataset.schema, ("id", "image", "caption"), dataset.location)
    config: dict[str, Any] = {
        "input": dataset.location,
        "input_sha256": dataset.digest,
        "format": format,
        "pairs_per_file": pairs_per_file or _PAIRS_PER_FILE[format],
        "execution": {"workers": workers or available_cores()},
    }
    if open_output(storage, config, overwrite=overwrite, marker=MARKER) is OutputState.FINISHED:
        _log.info("%s is finished already; nothing to do.", storage.location)
        return read_export(storage.location)
    if format == "llava":
        _warn_of_levels(dataset)
    _run(dataset, storage, config, on_progress)
    return read_export(storage.location)


def read_export(location: Location) -> Export:
    """The finished export at `location`.

    Raises:
        InputError: there is none, or an unfinished one.
    """
    found = Storage(location).read_json(MARKER)
    try:
        return Export(
            location=Storage(location).location,
            format=found["config"]["format"],
            rows=found["rows"],
            pictures=found["pictures"],
            without_picture=found["without_picture"],
            files=[WrittenFile(**file) for file in found["files"]],
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{MARKER} in {Storage(location).location} is not of an export; export again."
        ) from error


def _run(
    dataset: Dataset, storage: Storage, config: dict[str, Any], on_progress: OnProgress
) -> None:
    spans = cut_into_spans(dataset.manifest.rows, config["pairs_per_file"])
    exporter = _exporter(config["format"], dataset, len(spans))
    done = {span.index: span for span in _finished_spans(storage)}
    on_progress(sum(span.rows for span in done.values()))

    def write(span: Span) -> WrittenSpan:
        written = exporter.write(span, storage)
        storage.write_json(f"{_SPANS_FOLDER}/{span.index:07d}.json", asdict(written))
        return written

    with released_if_empty(storage):
        to_do = [span for span in spans if span.index not in done]
        for written in map_ordered(write, to_do, config["execution"]["workers"]):
            done[written.index] = written
            on_progress(written.rows)
        in_order = [done[span.index] for span in spans]
        files = exporter.finish(storage, in_order)
        storage.write_json(MARKER, _marker(dataset, config, in_order, files))
        storage.delete(RUN_FOLDER)


def _exporter(format: Format, dataset: Dataset, spans: int) -> Exporter:
    if format == "llava":
        return LlavaExporter(dataset)
    if format == "webdataset":
        return WebdatasetExporter(dataset, spans)
    return HuggingFaceExporter(dataset, spans)


def _finished_spans(storage: Storage) -> list[WrittenSpan]:
    """What an earlier run has finished and is still there."""
    folder = storage.child(_SPANS_FOLDER)
    records = [folder.read_json(name) for name in folder.names() if name.endswith(".json")]
    found = [
        WrittenSpan(**(record | {"files": [WrittenFile(**file) for file in record["files"]]}))
        for record in records
    ]
    return [span for span in found if all(storage.exists(file.file) for file in span.files)]


def _marker(
    dataset: Dataset, config: dict[str, Any], spans: list[WrittenSpan], files: list[WrittenFile]
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
            "%s has %d levels and the trainer of AlignGPT's authors has %d; train with one that "
            "can be told, or export %d levels.",
            dataset.location, edges.levels, AUTHORS_LEVELS, AUTHORS_LEVELS,
        )  # fmt: skip
