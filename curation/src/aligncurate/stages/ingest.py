"""ingest: write LLaVA instruction data as shards with images, unscored."""

import os
import time
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from aligncurate.output.folder import default_output, refuse_to_write_over
from aligncurate.settings import called_with
from aligncurate.sources import RawBatch
from aligncurate.sources.files import read_image
from aligncurate.sources.llava import InstructionSource
from aligncurate.stages.settings import IngestSettings
from aligncurate.threads import available_cores
from aligncurate.units.local import ThreadStep, UnitPipeline, run_in_process
from aligncurate.units.records import FinishedBatch, Timing, manifest_of
from aligncurate.units.run import UnitRun, write_dataset
from alignshared import Dataset, InputError, Manifest, Parent, Reject, Storage
from alignshared.images import ImageError, decode_image
from alignshared.manifest import RUN_FOLDER
from alignshared.schema import IMAGE_TYPE, ingested_schema

_BATCH_ROWS = 64


@called_with(IngestSettings)
def ingest(settings: IngestSettings) -> Dataset:
    """Write the conversations of `input` and their images as a dataset, unscored.

    Images are decoded once as a check and stored unchanged; their paths are relative to
    `image_root` and confined to it. Records without image are text only; those with a missing or
    broken image become rejects. An unfinished run is resumed; if `output` holds the dataset
    already, nothing is done.

    Arguments are the fields of `IngestSettings`, which are also the command's options;
    `on_progress` is called with the numbers of records done and rejected.

    Raises:
        InputError: the input or the output cannot be used; the message says why.
        AlignError: the run or some of its units failed; finished units are kept, and the same call
            resumes.
    """
    location = os.fspath(settings.input)
    if not location.endswith((".json", ".jsonl")):
        raise InputError(
            f"--input {location} is not known; give a LLaVA .json or .jsonl file with "
            "conversations."
        )
    source = InstructionSource(location, settings.image_root)
    storage = Storage(settings.output or default_output(source.name, "ingest"))
    refuse_to_write_over(storage.location, source.location, source.image_root)
    config: dict[str, Any] = {"input": source.identity(), "shard_rows": settings.shard_rows}

    def write() -> Manifest:
        began = time.monotonic()
        units = source.plan(storage.child(RUN_FOLDER), settings.shard_rows)
        if not units:
            raise InputError(f"there are no records in {source.location}.")
        run = UnitRun(
            storage, units, ingested_schema(),
            retry_failed=settings.retry_failed, skip_failed=settings.skip_failed,
        )  # fmt: skip
        settings.on_progress(run.rows_done)
        step = ThreadStep(partial(_with_images, image_root=source.image_root), available_cores())
        read = partial(source.read, batch_rows=_BATCH_ROWS)
        pipeline = UnitPipeline(read, [step], ingested_schema(), storage, settings.unit_timeout)
        records = run.run(lambda to_do: run_in_process(pipeline, to_do, settings.on_progress))
        facts = {"records": run.total, "seconds": time.monotonic() - began}
        parent = Parent(config["input"]["location"], config["input"]["digest"])
        return manifest_of("ingest", config | {"execution": facts}, parent, records)

    return write_dataset(storage, config, write, overwrite=settings.overwrite)


def _with_images(raw: RawBatch, image_root: str | None) -> FinishedBatch:
    """Return `raw` with image bytes and sizes; records with unusable images become rejects."""
    began = time.perf_counter()
    rejects = list(raw.rejects)
    keep: list[int] = []
    images: list[dict[str, Any] | None] = []
    sizes: list[tuple[int, int] | tuple[None, None]] = []
    ids = raw.table["id"].to_pylist()
    for row, (id_, image) in enumerate(zip(ids, raw.table["image"].to_pylist(), strict=True)):
        content, size = None, (None, None)
        if image is not None:
            try:
                content = read_image(image_root, image["path"])
                size = decode_image(content).size
            except ImageError as error:
                rejects.append(Reject(id_, image["path"], error.reason, error.detail))
                continue
        keep.append(row)
        images.append(image and {"bytes": content, "path": image["path"]})
        sizes.append(size)
    table = _table(raw.table.take(np.array(keep, dtype=np.int64)), images, sizes)
    return FinishedBatch(table, rejects, Timing(decode_s=time.perf_counter() - began))


def _table(rows: pa.Table, images: list[Any], sizes: list[Any]) -> pa.Table:
    schema = ingested_schema()
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names}
    columns["image"] = pa.array(images, IMAGE_TYPE)
    columns["width"] = pa.array([width for width, _ in sizes], pa.int32())
    columns["height"] = pa.array([height for _, height in sizes], pa.int32())
    return pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)
