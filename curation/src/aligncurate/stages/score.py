"""`aligncurate score`: CLIP scores for image-text pairs."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from aligncurate.core.clip import ResolvedClip
from aligncurate.output.folder import default_output, read_rejects, refuse_to_write_over
from aligncurate.scoring.execution import (
    device_of,
    engine_of,
    prepare_on_cluster,
    score_locally,
    score_on_ray,
)
from aligncurate.scoring.models import refuse_taken_columns, resolve_models
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.settings import Precision, called_with, silent
from aligncurate.sources import open_source
from aligncurate.stages.settings import ScoreSettings
from aligncurate.units.records import Timing, UnitRecord, manifest_of
from aligncurate.units.run import UnitRun, write_dataset
from alignshared import Dataset, InputError, Manifest, Parent, Storage
from alignshared.manifest import RUN_FOLDER

log = logging.getLogger("aligncurate")

DEFAULT_MODEL = "ViT-L-14-336"
_CPU_BATCH, _GPU_BATCH = 64, 256


@called_with(ScoreSettings)
def score(settings: ScoreSettings) -> Dataset:
    """Score the pairs of `input` with a CLIP and write them as a dataset.

    Arguments are the fields of `ScoreSettings`, which are also the command's options;
    `execution` selects engine and workers, and `show_progress` is called once with the number of
    rows to do.

    Returns:
        The dataset; if `output` held it already, nothing was done. It has no rows, and a warning
        is logged, if every pair was rejected.

    Raises:
        InputError: the input, the model or the output cannot be used; the message says which and
            why.
        AlignError: the run or some of its units failed; finished units are kept, and the same call
            resumes.
    """
    spec = _spec(settings)
    storage = Storage(spec.output)
    refuse_to_write_over(
        storage.location, spec.source.identity()["location"], spec.source.image_root
    )
    spec = replace(spec, output=storage.location)
    config = _config(spec, settings.shard_rows)
    dataset = write_dataset(
        storage, config, lambda: _run(spec, settings, config), overwrite=settings.overwrite
    )
    if not dataset.manifest.rows:
        _warn_of_rejects(dataset)
    return dataset


def _spec(settings: ScoreSettings) -> ScoringSpec:
    """Specification resulting from `settings` on this machine."""
    source = open_source(os.fspath(settings.input), settings.image_root)
    names = _listed(settings.model) or ["demo" if settings.input == "demo" else DEFAULT_MODEL]
    models = resolve_models(names, _listed(settings.weights), settings.main, settings.view)
    device = device_of(settings.execution)
    return ScoringSpec(
        source=source,
        clip=models.main,
        precision=_precision(settings, device),
        device=device,
        batch_size=settings.batch_size or (_CPU_BATCH if device == "cpu" else _GPU_BATCH),
        embeddings=settings.embeddings,
        output=os.fspath(settings.output or default_output(source.name, "score")),
        models=models.several,
        long_captions=settings.long_captions,
        decode=settings.decode,
    )


def _run(spec: ScoringSpec, settings: ScoreSettings, config: dict[str, Any]) -> Manifest:
    """Score the remaining units; return the manifest of all."""
    storage, execution = Storage(spec.output), settings.execution
    planning = storage.child(RUN_FOLDER)
    prepare_on_cluster(spec.source, planning, execution)
    units = spec.source.plan(planning, settings.shard_rows)
    if not units:
        raise InputError(f"there are no pairs in {config['input']['location']}.")
    refuse_taken_columns(spec.models, spec.source.own_columns().names)
    run = UnitRun(
        storage, units, spec.schema,
        retry_failed=settings.retry_failed, skip_failed=settings.skip_failed,
    )  # fmt: skip
    done, total, to_do = run.rows_done, run.total, sum(unit.rows for unit in run.to_do)
    if done:
        log.info("resuming %s: %s of %s pairs are done.", storage.location, done, total)
    engine = engine_of(execution, total)
    score_units = score_locally if engine == "local" else score_on_ray
    began = time.monotonic()
    show_progress = settings.show_progress or (lambda *_: nullcontext(silent))
    with show_progress("score", total, done) as on_progress:
        records = run.run(lambda units: score_units(spec, units, execution, on_progress))
    facts = _execution_facts(spec.device, engine, time.monotonic() - began, to_do, records)
    _log_speed(facts)
    return manifest_of(
        "score",
        config | {"execution": facts},
        Parent(config["input"]["location"], config["input"]["digest"]),
        records,
        model=spec.info(spec.clip),
        models={name: spec.info(clip) for name, clip in spec.models.items()} or None,
    )


def _log_speed(facts: dict[str, Any]) -> None:
    work = facts["decode_seconds"] + facts["model_seconds"]
    if work and facts["seconds"]:
        log.info(
            "%s pairs in %.1f s, %.0f pairs/s with start-up, on %s; decoding took %.0f %% of the "
            "work.",
            f"{facts['pairs']:,}", facts["seconds"], facts["pairs"] / facts["seconds"],
            facts["device"], 100 * facts["decode_seconds"] / work,
        )  # fmt: skip


def _warn_of_rejects(dataset: Dataset) -> None:
    manifest, first = dataset.manifest, read_rejects(dataset, 1)[0]
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.rejects.items())
    log.warning(
        "none of the %s pairs could be scored (%s); the first, %s: %s; see rejects/ in %s.",
        manifest.reject_count, reasons, first["id"], first["detail"], dataset.location,
    )  # fmt: skip


def _precision(settings: ScoreSettings, device: str) -> Precision:
    if settings.precision == "fp16" and device == "cpu":
        raise InputError("--precision fp16 needs a GPU; give bf16 or fp32 on a CPU.")
    if settings.precision != "auto":
        return settings.precision
    return "fp32" if device == "cpu" else "bf16"


def _listed(values: str | Sequence[str] | None) -> list[str]:
    return [values] if isinstance(values, str) else list(values or ())


def _config(spec: ScoringSpec, shard_rows: int | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "input": spec.source.identity(),
        **_model_config(spec.clip),
        "precision": spec.precision,
        "batch_size": spec.batch_size,
        "shard_rows": shard_rows,
        "embeddings": spec.embeddings,
    }
    # Newer options are left out at their defaults, so that older datasets still match.
    if spec.models:
        config["models"] = {name: _model_config(clip) for name, clip in spec.models.items()}
    if spec.clip.view:
        config["view"] = spec.clip.view
    if spec.long_captions != "truncate":
        config["long_captions"] = spec.long_captions
    if spec.decode != "exact":
        config["decode"] = spec.decode
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


def _execution_facts(
    device: str, engine: str, seconds: float, rows: int, records: list[UnitRecord]
) -> dict[str, Any]:
    timing = sum((record.timing for record in records), Timing())
    return {
        "engine": engine,
        "device": device,
        "pairs": rows,
        "seconds": round(seconds, 2),
        "decode_seconds": round(timing.decode_s, 2),
        "model_seconds": round(timing.model_s, 2),
    }
