"""`aligncurate score`: image-text pairs in, the same pairs with CLIP scores out."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from aligncurate.core.clip import LongCaptions, Precision, ResolvedClip, View
from aligncurate.output.folder import (
    RUN_FOLDER,
    OutputState,
    add_reasons,
    finish,
    open_output,
    provenance,
    read_rejects,
)
from aligncurate.output.locations import default_output, refuse_to_write_over
from aligncurate.progress import OnProgress, silent
from aligncurate.scoring.execution import (
    Execution,
    device_of,
    engine_of,
    prepare_on_cluster,
    require_one_of,
    score_locally,
    score_on_ray,
)
from aligncurate.scoring.models import refuse_taken_columns, resolve_models
from aligncurate.scoring.spec import Decode, Scoring
from aligncurate.sources import open_source
from aligncurate.units.records import Timing, UnitRecord, released_if_empty
from aligncurate.units.run import Failed, UnitRun
from alignshared import Dataset, InputError, Manifest, Parent, Storage

log = logging.getLogger("aligncurate")

DEFAULT_MODEL = "ViT-L-14-336"
_CPU_BATCH, _GPU_BATCH = 64, 256

ShowProgress = Callable[[str, int, int], AbstractContextManager[OnProgress]]
"""(task, total pairs, pairs done by an earlier run) to what is called as pairs are done."""


def _show_nothing(_task: str, _total: int, _begun: int) -> AbstractContextManager[OnProgress]:
    return nullcontext(silent)


def score(  # noqa: PLR0913 the command's options
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    image_root: str | None = None,
    model: str | Sequence[str] | None = None,
    weights: str | Sequence[str] | None = None,
    main: str | None = None,
    view: View | None = None,
    long_captions: LongCaptions = "truncate",
    decode: Decode = "exact",
    precision: Precision | Literal["auto"] = "auto",
    batch_size: int | None = None,
    shard_rows: int | None = None,
    embeddings: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    skip_failed: bool = False,
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
            model for the demo pairs and ViT-L-14-336 for all others. Several, each a model or
            `NAME=MODEL`, score in one pass; each has a column `score_<name>` then.
        weights: pretrained tag or weights file of an architecture; None is `openai`. Of several
            models each says `NAME=WEIGHTS`.
        main: which of several models gives `score` and the embeddings; the first if None.
        view: how a picture that is not square is framed: `crop` or `pad`; None is the model's own
            way.
        long_captions: `truncate`, or `mean` of the windows of a caption that is longer than the
            text tower reads.
        decode: `fast` decodes large JPEGs at reduced scale.
        precision: `auto` is fp32 on CPU and bf16 on a GPU.
        batch_size: pairs per forward pass; None is 64 on CPU and 256 on a GPU.
        shard_rows: pairs per shard; None suits the total, from 256 to 1,024.
        embeddings: also write unit embeddings, float16.
        overwrite: replace a dataset or unfinished run in `output`.
        retry_failed: try units again that failed in earlier runs; otherwise they are left alone.
        skip_failed: at the end, make the pairs of failed units rejects; otherwise there is no
            dataset until all units are done.
        execution: engine and workers.
        show_progress: called once with what there is to do.

    Returns:
        The dataset; if `output` held it already, nothing was done. It has no rows, and a warning
        is logged, if every pair was rejected.

    Raises:
        InputError: the input, the model or the output cannot be used; the message says which and
            why.
        AlignError: the run or some of its units failed; what is finished is kept, and the same
            call goes on from there.
    """
    execution = execution or Execution()
    for option, value in (("--batch-size", batch_size), ("--shard-rows", shard_rows)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} cannot be; give 1 or more.")
    source = open_source(os.fspath(input), image_root)
    require_one_of("--view", view or "crop", get_args(View))
    require_one_of("--long-captions", long_captions, get_args(LongCaptions))
    require_one_of("--decode", decode, get_args(Decode))
    named = _listed(model) or ["demo" if input == "demo" else DEFAULT_MODEL]
    models = resolve_models(named, _listed(weights), main, view)
    device = device_of(execution)
    scoring = Scoring(
        source=source,
        clip=models.main,
        precision=_precision(precision, device),
        device=device,
        batch_size=batch_size or (_CPU_BATCH if device == "cpu" else _GPU_BATCH),
        embeddings=embeddings,
        output=os.fspath(output or default_output(source.name, "score")),
        models=models.several,
        long_captions=long_captions,
        decode=decode,
    )
    storage = Storage(scoring.output)
    refuse_to_write_over(storage.location, source.identity()["location"], source.image_root)
    config = _config(scoring, shard_rows)
    if open_output(storage, config, overwrite=overwrite) is OutputState.FINISHED:
        log.info("%s is finished already; nothing was done.", storage.location)
        return Dataset(storage.location)
    scoring = replace(scoring, output=storage.location)
    job = _Job(scoring, shard_rows, config, execution, Failed(retry_failed, skip_failed))
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
    failed: Failed


def _run(job: _Job, show_progress: ShowProgress) -> Dataset:
    scoring, config, execution = job.scoring, job.config, job.execution
    storage = Storage(scoring.output)
    planning = storage.child(RUN_FOLDER)
    prepare_on_cluster(scoring.source, planning, execution)
    units = scoring.source.plan(planning, job.shard_rows)
    if not units:
        raise InputError(f"there are no pairs in {config['input']['location']}.")
    refuse_taken_columns(scoring.models, scoring.source.own_columns().names)
    run = UnitRun(storage, units, scoring.schema, job.failed)
    if run.begun:
        log.info(
            "going on with %s: %s of %s pairs are done.", storage.location, run.begun, run.total
        )
    engine = engine_of(execution, run.total)
    rows = sum(unit.rows for unit in run.to_do)
    began = time.monotonic()
    with show_progress("score", run.total, run.begun) as on_progress:
        work = score_locally if engine == "local" else score_on_ray
        done = run.run(lambda to_do: work(scoring, to_do, execution, on_progress))
    how = _how(scoring, engine, time.monotonic() - began, rows, done)
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


def _precision(asked: Precision | Literal["auto"], device: str) -> Precision:
    require_one_of("--precision", asked, ("auto", *get_args(Precision)))
    if asked == "fp16" and device == "cpu":
        raise InputError("--precision fp16 needs a GPU; give bf16 or fp32 on a CPU.")
    if asked != "auto":
        return asked
    return "fp32" if device == "cpu" else "bf16"


def _listed(given: str | Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _config(scoring: Scoring, shard_rows: int | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "input": scoring.source.identity(),
        **_model_config(scoring.clip),
        "precision": scoring.precision,
        "batch_size": scoring.batch_size,
        "shard_rows": shard_rows,
        "embeddings": scoring.embeddings,
    }
    # What is as it always was is not named, so a dataset from before these options is still known.
    if scoring.models:
        config["models"] = {name: _model_config(clip) for name, clip in scoring.models.items()}
    if scoring.clip.view:
        config["view"] = scoring.clip.view
    if scoring.long_captions != "truncate":
        config["long_captions"] = scoring.long_captions
    if scoring.decode != "exact":
        config["decode"] = scoring.decode
    return config


def _model_config(clip: ResolvedClip) -> dict[str, Any]:
    return {
        "model": clip.name,
        "weights": clip.weights,
        "weights_sha256": clip.weights_sha256,
        "quick_gelu": clip.quick_gelu,
        "preprocess": {
            k: list(v) if isinstance(v, tuple) else v for k, v in clip.preprocess.items()
        },
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
        model=scoring.info(scoring.clip),
        models={name: scoring.info(clip) for name, clip in scoring.models.items()} or None,
        **provenance(),
    )
