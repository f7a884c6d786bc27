"""ingest: LLaVA instruction data into shards, pictures inside, unscored."""

import logging
import os
import time
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from aligncurate.output.folder import (
    RUN_FOLDER,
    OutputState,
    add_reasons,
    finish,
    open_output,
    provenance,
)
from aligncurate.output.locations import default_output, refuse_to_write_over
from aligncurate.progress import OnProgress, silent
from aligncurate.sources import RawBatch, Unit
from aligncurate.sources.files import read_image
from aligncurate.sources.instructions import InstructionSource
from aligncurate.threads import available_cores
from aligncurate.units.local import UNIT_TIMEOUT_S, LineStep, Work, work_in_process
from aligncurate.units.records import FinishedBatch, Timing, UnitRecord, released_if_empty
from aligncurate.units.run import Failed, Outcomes, UnitRun
from alignshared import Dataset, InputError, Manifest, Parent, Reject, Storage
from alignshared.pictures import ImageError, decode_image
from alignshared.schema import IMAGE_TYPE, ingested_schema

_BATCH_ROWS = 64

log = logging.getLogger("aligncurate")


def ingest(  # noqa: PLR0913 the command's options
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    image_root: str | None = None,
    shard_rows: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    skip_failed: bool = False,
    unit_timeout: float = UNIT_TIMEOUT_S,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Write the conversations of `input` and their pictures as a dataset, unscored.

    Pictures are decoded once, to know that they can be, and stored as they are. A record without
    image is text alone; one whose picture is missing or broken becomes a reject. An unfinished run
    is gone on with.

    Args:
        input: a LLaVA `.json` or `.jsonl` file with `conversations`.
        output: folder of the dataset; `data/<name>/ingest` if None.
        image_root: folder that paths of pictures are relative to and may not leave; by default the
            one that `input` lies in.
        shard_rows: records per shard; None suits the total, from 256 to 1,024.
        overwrite: replace a dataset or unfinished run in `output`.
        retry_failed: try units again that failed in earlier runs; otherwise they are left alone.
        skip_failed: at the end, make the records of failed units rejects; otherwise there is no
            dataset until all units are done.
        unit_timeout: seconds without progress after which a unit counts as failed.
        on_progress: called with the number of records done and how many of them were rejected.

    Returns:
        The dataset; if `output` held it already, nothing was done.

    Raises:
        InputError: the input or the output cannot be used; the message says why.
        AlignError: the run or some of its units failed; what is finished is kept, and the same
            call goes on from there.
    """
    if shard_rows is not None and shard_rows < 1:
        raise InputError(f"--shard-rows {shard_rows} cannot be; give 1 or more.")
    location = os.fspath(input)
    if not location.endswith((".json", ".jsonl")):
        raise InputError(
            f"--input {location} is not known; give a LLaVA .json or .jsonl file with "
            "conversations."
        )
    source = InstructionSource(location, image_root)
    storage = Storage(output or default_output(source.name, "ingest"))
    refuse_to_write_over(storage.location, source.location, source.image_root)
    config = {"input": source.identity(), "shard_rows": shard_rows}
    if open_output(storage, config, overwrite=overwrite) is OutputState.FINISHED:
        log.info("%s is finished already; nothing was done.", storage.location)
        return Dataset(storage.location)
    began = time.monotonic()
    with released_if_empty(storage):
        units = source.plan(storage.child(RUN_FOLDER), shard_rows)
        if not units:
            raise InputError(f"there are no records in {source.location}.")
        run = UnitRun(storage, units, ingested_schema(), Failed(retry_failed, skip_failed))
        on_progress(run.begun)
        records = run.run(lambda to_do: _work(source, to_do, storage, unit_timeout, on_progress))
        how = {"records": run.total, "seconds": time.monotonic() - began}
        return finish(storage, _manifest(config | {"execution": how}, records))


def _work(
    source: InstructionSource,
    units: list[Unit],
    storage: Storage,
    timeout_s: float,
    on_progress: OnProgress,
) -> Outcomes:
    step = LineStep(partial(_finished, image_root=source.image_root), available_cores())
    read = partial(source.read, batch_rows=_BATCH_ROWS)
    work = Work(read, [step], ingested_schema(), storage, timeout_s)
    return work_in_process(work, units, on_progress)


def _finished(raw: RawBatch, image_root: str | None) -> FinishedBatch:
    """`raw` with the pictures' bytes and sizes; records whose picture is unusable are rejects."""
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


def _manifest(config: dict[str, Any], records: list[UnitRecord]) -> Manifest:
    source, made = config["input"], provenance()
    return Manifest(
        stage="ingest",
        rows=sum(record.shard.rows for record in records),
        rejects=add_reasons(record.rejects.reasons for record in records),
        shards=[record.shard for record in records],
        reject_shards=[r.rejects.info for r in records if r.rejects.info is not None],
        config=config,
        parents=[Parent(source["location"], source["digest"])],
        package=made["package"],
        created=made["created"],
    )
