"""`aligncurate score`: image-text pairs in, the same pairs with CLIP scores out."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from aligncurate.core.clip import Precision, available_gpus, resolve_clip
from aligncurate.engine import Step, connected, map_on_ray
from aligncurate.local import available_cores
from aligncurate.output import (
    RUN_FOLDER,
    OutputState,
    add_reasons,
    finish,
    open_output,
    provenance,
    read_rejects,
)
from aligncurate.places import default_output, refuse_to_write_over
from aligncurate.progress import OnProgress, silent
from aligncurate.sources import Unit, open_source
from aligncurate.stages.scoring import (
    FrameUnit,
    ScoreFramed,
    ScoreUnit,
    Scoring,
    WriteScored,
    score_in_process,
)
from aligncurate.units import Timing, UnitRecord, finished_units, released_if_empty
from alignshared import Dataset, InputError, Manifest, Parent, Storage

log = logging.getLogger("aligncurate")

DEFAULT_MODEL = "ViT-L-14-336"
LOCAL_MAX_ROWS = 10_000
"""Up to this many pairs `--engine auto` stays in this process: Ray takes half a minute to start."""

_CPU_BATCH, _GPU_BATCH = 64, 256

Engine = Literal["auto", "local", "ray"]
ShowProgress = Callable[[str, int, int], AbstractContextManager[OnProgress]]
"""(task, total pairs, pairs done by an earlier run) to what is called as pairs are done."""


def _show_nothing(_task: str, _total: int, _begun: int) -> AbstractContextManager[OnProgress]:
    return nullcontext(silent)


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is executed; nothing here changes a row.

    `workers` are threads or actors on CPU, decoders beside a GPU; None takes what the machine has.
    """

    engine: Engine = "auto"
    workers: int | None = None
    gpus: int | None = None
    ray_address: str | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        _require_one_of("--engine", self.engine, get_args(Engine))
        for name in ("workers", "gpus"):
            value = getattr(self, name)
            least = 1 if name == "workers" else 0
            if value is not None and value < least:
                raise InputError(f"--{name} {value} cannot be; give {least} or more.")
        if self.ray_address and self.engine == "local":
            raise InputError("--ray-address goes with --engine ray; leave one of them out.")
        if (self.gpus or 0) > 1 and self.engine == "local":
            raise InputError(
                f"--engine local uses one GPU, not {self.gpus}; give --engine ray, or --gpus 1."
            )


def score(  # noqa: PLR0913 the command's options
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    image_root: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    precision: Precision | Literal["auto"] = "auto",
    batch_size: int | None = None,
    shard_rows: int | None = None,
    embeddings: bool = False,
    overwrite: bool = False,
    execution: Execution | None = None,
    show_progress: ShowProgress = _show_nothing,
) -> Dataset:
    """Score the pairs of `input` with a CLIP and write them as a dataset.

    Args:
        input: `demo`, `laion-cc-sbu`, a LLaVA `.json` or `.jsonl` file, a file, folder or glob of
            Parquet or WebDataset tars, a folder of pictures, or a dataset; a path or a URI.
        output: folder of the dataset; `data/<name>/score` if None.
        image_root: folder that paths of pictures are relative to and may not leave.
        model: open_clip architecture, `hf-hub:` name, folder, or `demo`; None takes the shipped
            model for the demo pairs and ViT-L-14-336 for all others.
        weights: pretrained tag or weights file of an architecture; None is `openai`.
        precision: `auto` is fp32 on CPU and bf16 on a GPU.
        batch_size: pairs per forward pass; None is 64 on CPU and 256 on a GPU.
        shard_rows: pairs per shard; None suits the total, from 256 to 1,024.
        embeddings: also write unit embeddings, float16.
        overwrite: replace a dataset or unfinished run in `output`.
        execution: engine and workers.
        show_progress: called once with what there is to do.

    Returns:
        The dataset; if `output` held it already, nothing was done. It has no rows, and a warning
        is logged, if every pair was rejected.

    Raises:
        InputError: the input, the model or the output cannot be used; the message says which and
            why.
        AlignError: the run failed; what is finished is kept, and the same call goes on from there.
    """
    execution = execution or Execution()
    for option, value in (("--batch-size", batch_size), ("--shard-rows", shard_rows)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} cannot be; give 1 or more.")
    source = open_source(os.fspath(input), image_root)
    clip = resolve_clip(model or ("demo" if input == "demo" else DEFAULT_MODEL), weights)
    device = "cuda" if execution.gpus != 0 and _has_gpu(execution) else "cpu"
    scoring = Scoring(
        source=source,
        clip=clip,
        precision=_precision(precision, device),
        device=device,
        batch_size=batch_size or (_CPU_BATCH if device == "cpu" else _GPU_BATCH),
        embeddings=embeddings,
        output=os.fspath(output or default_output(source.name, "score")),
    )
    storage = Storage(scoring.output)
    refuse_to_write_over(storage.location, source.identity()["location"], source.image_root)
    config = _config(scoring, shard_rows)
    if open_output(storage, config, overwrite=overwrite) is OutputState.FINISHED:
        log.info("%s is finished already; nothing was done.", storage.location)
        return Dataset(storage.location)
    job = _Job(replace(scoring, output=storage.location), shard_rows, config, execution)
    with released_if_empty(storage):
        dataset = _run(job, show_progress)
    _warn_of_rejects(dataset)
    return dataset


@dataclass(frozen=True, slots=True)
class _Job:
    """A run that has its output folder."""

    scoring: Scoring
    shard_rows: int | None
    config: dict[str, Any]
    execution: Execution


def _run(job: _Job, show_progress: ShowProgress) -> Dataset:
    scoring, config, execution = job.scoring, job.config, job.execution
    storage = Storage(scoring.output)
    units = scoring.source.plan(storage.child(RUN_FOLDER), job.shard_rows)
    if not units:
        raise InputError(f"there are no pairs in {config['input']['location']}.")
    records = {record.index: record for record in finished_units(storage)}
    begun = sum(record.rows_in for record in records.values())
    total = sum(unit.rows for unit in units)
    if begun:
        log.info("going on with %s: %s of %s pairs are done.", storage.location, begun, total)
    engine = _engine(execution, total)
    to_do = [unit for unit in units if unit.index not in records]
    began = time.monotonic()
    with show_progress("score", total, begun) as on_progress:
        work = _in_process if engine == "local" else _on_ray
        for record in work(scoring, to_do, execution, on_progress) if to_do else ():
            records[record.index] = record
    done = [records[unit.index] for unit in units]
    how = _how(scoring, engine, time.monotonic() - began, sum(u.rows for u in to_do), done)
    _tell_speed(how)
    return finish(storage, _manifest(scoring, config | {"execution": how}, done))


def _tell_speed(how: dict[str, Any]) -> None:
    work = how["decode_seconds"] + how["model_seconds"]
    if work and how["seconds"]:
        log.info(
            "%s pairs in %.1f s, %.0f pairs/s with start-up, on %s; decoding took %.0f %% of the "
            "work.",
            f"{how['pairs']:,}", how["seconds"], how["pairs"] / how["seconds"], how["device"],
            100 * how["decode_seconds"] / work,
        )  # fmt: skip


def _warn_of_rejects(dataset: Dataset) -> None:
    if dataset.manifest.rows:
        return
    first = read_rejects(dataset, 1)[0]
    reasons = ", ".join(f"{count} {reason}" for reason, count in dataset.manifest.rejects.items())
    log.warning(
        "none of the %s pairs could be scored (%s); the first, %s: %s; see rejects/ in %s.",
        dataset.manifest.reject_count, reasons, first["id"], first["detail"], dataset.location,
    )  # fmt: skip


def _require_one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{option} {value} is not known; give {', '.join(known)}.")


def _in_process(
    scoring: Scoring, units: list[Unit], execution: Execution, on_progress: OnProgress
) -> Iterator[UnitRecord]:
    threads = execution.workers or available_cores()
    return score_in_process(scoring, units, threads, on_progress)


def _on_ray(
    scoring: Scoring, units: list[Unit], execution: Execution, on_progress: OnProgress
) -> Iterator[UnitRecord]:
    local = execution.workers or available_cores()
    with connected(execution.ray_address, local, verbose=execution.verbose) as cluster:
        if scoring.device == "cpu":
            # One CPU is left for Ray's own reading, or nothing would ever start.
            actors = min(execution.workers or cluster.cpus, cluster.cpus - 1, len(units))
            if not execution.ray_address:
                actors = min(actors, local)
            steps = [Step(ScoreUnit(scoring), actors=actors)]
        else:
            steps = gpu_steps(scoring, min(execution.gpus or cluster.gpus, len(units)))
        for record in map_on_ray(steps, units):
            on_progress(record.rows_in, record.reject_count)
            yield record


def gpu_steps(scoring: Scoring, gpus: int) -> list[Step]:
    """Decode in tasks, score in `gpus` actors that hold one GPU each, write in tasks."""
    gpu_share = 1.0 if scoring.device == "cuda" else 0.0
    return [
        Step(FrameUnit(scoring)),
        Step(ScoreFramed(scoring), actors=gpus, gpus=gpu_share),
        Step(WriteScored(scoring)),
    ]


def _engine(execution: Execution, rows: int) -> Literal["local", "ray"]:
    if execution.engine != "auto":
        return execution.engine
    many_gpus = (execution.gpus or 0) > 1
    return "ray" if execution.ray_address or many_gpus or rows > LOCAL_MAX_ROWS else "local"


def _has_gpu(execution: Execution) -> bool:
    found = available_gpus()
    wanted = execution.gpus or 0
    if execution.ray_address:  # the cluster's GPUs need not be on this machine
        return wanted > 0
    if wanted > found:
        raise InputError(f"--gpus {wanted}: torch finds {found} here; give --gpus {found}.")
    return found > 0


def _precision(asked: Precision | Literal["auto"], device: str) -> Precision:
    _require_one_of("--precision", asked, ("auto", *get_args(Precision)))
    if asked == "fp16" and device == "cpu":
        raise InputError("--precision fp16 needs a GPU; give bf16 or fp32 on a CPU.")
    if asked != "auto":
        return asked
    return "fp32" if device == "cpu" else "bf16"


def _config(scoring: Scoring, shard_rows: int | None) -> dict[str, Any]:
    clip = scoring.clip
    return {
        "input": scoring.source.identity(),
        "model": clip.name,
        "weights": clip.weights,
        "weights_sha256": clip.weights_sha256,
        "quick_gelu": clip.quick_gelu,
        "preprocess": {
            k: list(v) if isinstance(v, tuple) else v for k, v in clip.preprocess.items()
        },
        "precision": scoring.precision,
        "batch_size": scoring.batch_size,
        "shard_rows": shard_rows,
        "embeddings": scoring.embeddings,
    }


def _how(
    scoring: Scoring, engine: str, seconds: float, rows: int, records: list[UnitRecord]
) -> dict[str, Any]:
    timing = sum((record.timing for record in records), Timing())
    return {
        "engine": engine,
        "device": scoring.device,
        "pairs": rows,
        "seconds": round(seconds, 2),
        "decode_seconds": round(timing.decode_s, 2),
        "model_seconds": round(timing.model_s, 2),
    }


def _manifest(scoring: Scoring, config: dict[str, Any], records: list[UnitRecord]) -> Manifest:
    source = config["input"]
    return Manifest(
        stage="score",
        rows=sum(record.shard.rows for record in records),
        rejects=add_reasons(record.rejects.reasons for record in records),
        shards=[record.shard for record in records],
        reject_shards=[r.rejects.info for r in records if r.rejects.info is not None],
        config=config,
        parents=[Parent(source["location"], source["digest"])],
        model=scoring.clip.info(scoring.precision),
        **provenance(),
    )
