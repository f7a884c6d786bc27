"""ingest: write LLaVA instruction data as shards with images, unscored."""

import os
import time
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from aligncurate.output.folder import RUN_FOLDER
from aligncurate.output.locations import default_output, refuse_to_write_over
from aligncurate.progress import OnProgress, silent
from aligncurate.settings import UNIT_TIMEOUT_S, Location, require_at_least
from aligncurate.sources import RawBatch, Unit
from aligncurate.sources.files import read_image
from aligncurate.sources.llava import InstructionSource
from aligncurate.threads import available_cores
from aligncurate.units.local import ThreadStep, UnitPipeline, run_in_process
from aligncurate.units.records import FinishedBatch, Timing, manifest_fields
from aligncurate.units.run import FailedPolicy, Outcomes, UnitRun, write_dataset
from alignshared import Dataset, InputError, Manifest, Parent, Reject, Storage
from alignshared.images import ImageError, decode_image
from alignshared.schema import IMAGE_TYPE, ingested_schema

_BATCH_ROWS = 64


def ingest(  # noqa: PLR0913 the command's options
    input: Location,
    output: Location | None = None,
    *,
    image_root: str | None = None,
    shard_rows: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    skip_failed: bool = False,
    unit_timeout: float = UNIT_TIMEOUT_S,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Write the conversations of `input` and their images as a dataset, unscored.

    Images are decoded once as a check and stored unchanged. Records without image are text only;
    those with a missing or broken image become rejects. An unfinished run is resumed.

    Args:
        input: a LLaVA `.json` or `.jsonl` file with `conversations`.
        output: folder of the dataset; `data/<name>/ingest` if None.
        image_root: folder that image paths are relative to and confined to; by default the
            folder of `input`.
        shard_rows: records per shard; None chooses 256 to 1,024 from the total.
        overwrite: replace a dataset or unfinished run in `output`.
        retry_failed: retry units that failed in earlier runs; otherwise they are skipped.
        skip_failed: turn the records of failed units into rejects; otherwise there is no
            dataset until all units are done.
        unit_timeout: seconds without progress after which a unit counts as failed.
        on_progress: called with the number of records done and how many of them were rejected.

    Returns:
        The dataset; if `output` held it already, nothing was done.

    Raises:
        InputError: the input or the output cannot be used; the message says why.
        AlignError: the run or some of its units failed; finished units are kept, and the same call
            resumes.
    """
    require_at_least(1, shard_rows=shard_rows)
    location = os.fspath(input)
    if not location.endswith((".json", ".jsonl")):
        raise InputError(
            f"--input {location} is not known; give a LLaVA .json or .jsonl file with "
            "conversations."
        )
    source = InstructionSource(location, image_root)
    storage = Storage(output or default_output(source.name, "ingest"))
    refuse_to_write_over(storage.location, source.location, source.image_root)
    config: dict[str, Any] = {"input": source.identity(), "shard_rows": shard_rows}

    def write() -> Manifest:
        began = time.monotonic()
        units = source.plan(storage.child(RUN_FOLDER), shard_rows)
        if not units:
            raise InputError(f"there are no records in {source.location}.")
        failed = FailedPolicy(retry_failed, skip_failed)
        run = UnitRun(storage, units, ingested_schema(), failed)
        on_progress(run.rows_done)
        records = run.run(
            lambda to_do: _ingest_units(source, to_do, storage, unit_timeout, on_progress)
        )
        facts = {"records": run.total, "seconds": time.monotonic() - began}
        return Manifest(
            stage="ingest",
            config=config | {"execution": facts},
            parents=[Parent(config["input"]["location"], config["input"]["digest"])],
            **manifest_fields(records),
        )

    return write_dataset(storage, config, write, overwrite=overwrite)


def _ingest_units(
    source: InstructionSource,
    units: list[Unit],
    storage: Storage,
    timeout_s: float,
    on_progress: OnProgress,
) -> Outcomes:
    step = ThreadStep(partial(_with_images, image_root=source.image_root), available_cores())
    read = partial(source.read, batch_rows=_BATCH_ROWS)
    pipeline = UnitPipeline(read, [step], ingested_schema(), storage, timeout_s)
    return run_in_process(pipeline, units, on_progress)


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
