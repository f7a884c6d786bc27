"""`aligntrain run`: check a run, write its folder, and start its processes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignshared import InputError
from aligntrain.data.dataset import open_dataset
from aligntrain.inference.load import Base
from aligntrain.recipes import PHASES, Phase, load_recipe
from aligntrain.recipes.schema import Recipe
from aligntrain.runs.folder import (
    ADAPTER,
    EXPORT,
    FINISHED,
    LORA,
    METRICS,
    RunSpec,
    Start,
    is_run,
    read_run,
    result_of,
    write_run,
)
from aligntrain.train import checkpoint
from aligntrain.train.launch import launch, process_count
from aligntrain.train.loggers import check_loggers

RUNS = Path("runs")
"""Folder of runs without an `output`: `runs/<recipe>-<phase>`."""

NOTHING = "none"
"""Value of `start` for fine-tuning a new projector, table and gate."""

_IGNORED_FILES = frozenset({".DS_Store"})


@dataclass(frozen=True, slots=True)
class RunResult:
    """Finished run and its `Trainer.result` with `seconds`; `before` if nothing was left to do."""

    folder: Path
    ending: dict[str, Any]
    before: bool = False


def run(  # noqa: PLR0913 - the options of a run
    phase: Phase,
    data: str | os.PathLike[str],
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    resume: bool = False,
    nproc: int | None = None,
    start: str | Path | None = None,
    profile: int | None = None,
    isolated: bool = False,
    for_others: bool = False,
) -> RunResult:
    """Train `phase` on the dataset `data` with a recipe.

    Args:
        phase: `pretrain` or `finetune`.
        data: folder or URI of a dataset; a levelled one for pre-training.
        recipe: a recipe's name or file.
        overrides: `a.b=value`, as `--set` takes them.
        output: the run folder, by default `runs/<recipe>-<phase>`.
        resume: continue from the newest complete checkpoint, if any.
        nproc: processes; by default one for each GPU of this machine, or one.
        start: start of fine-tuning: a run folder, a model that `merge` wrote, an adapter file, or
            `none` for a new projector and table. By default the newest finished pretrain run beside
            `output`.
        profile: number of steps profiled by the first process, into the run folder.
        isolated: train even with one process in a child (see `launch`), as for run after run.
        for_others: refuse, before training, what others could not load: a LoRA on a base that only
            this machine has.

    Raises:
        InputError: the recipe, the data, the start or the folder cannot be used.
        AlignError: the run failed.
    """
    if profile is not None and profile < 1:
        raise InputError(f"--profile must be at least 1 (got {profile}).")
    folder = prepare(
        phase,
        data,
        recipe=recipe,
        overrides=overrides,
        output=output,
        resume=resume,
        start=start,
        nproc=nproc,
    )
    ending = result_of(folder)
    if ending is not None:
        return RunResult(folder, ending, before=True)
    if for_others and (spec := read_run(folder)).recipe.lora is not None:
        Base.of(spec).check_public(folder)
    launch(folder, resume=resume, nproc=nproc, profile=profile, isolated=isolated)
    ending = result_of(folder)
    assert ending is not None  # written by rank 0 on success
    return RunResult(folder, ending)


def prepare(
    phase: Phase,
    data: str | os.PathLike[str],
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    resume: bool = False,
    start: str | Path | None = None,
    nproc: int | None = 1,
) -> Path:
    """Write the run folder for torchrun or the deepspeed launcher (see `main`); start nothing.

    The run is checked as far as possible without a model, and left as it is if finished. Arguments
    and errors are those of `run`; `nproc` processes must be able to share a batch.
    """
    if phase not in PHASES:
        raise InputError(f"the phase {phase} is unknown; give {' or '.join(PHASES)}.")
    resolved = load_recipe(recipe, phase, overrides)
    check_loggers(resolved)
    folder = _folder(resolved, output)
    dataset = open_dataset(resolved, data)
    existing = _begun(folder)
    if existing is not None and start is None:
        origin = existing.start  # even if a newer pretraining run has finished
    else:
        origin = _resolve_start(phase, start, folder)
    spec = RunSpec(folder, resolved, dataset.location, dataset.digest, origin)
    ending = None
    if existing is not None:
        _check_same(existing, spec)
        ending = result_of(folder)
        newest = checkpoint.newest_checkpoint(folder)
        if ending is None and not resume and newest is not None:
            raise InputError(
                f"{folder} is an unfinished run with a checkpoint of step {newest.step}; give "
                "--resume to continue from it, or another --output."
            )
    if ending is None:
        if resolved.data.verify:
            dataset.verify()
        _check_batch(resolved, process_count(nproc))
        write_run(spec)
    return folder


def _check_batch(recipe: Recipe, processes: int) -> None:
    from aligntrain.data.loader import RankSlice

    RankSlice(recipe.batch.micro_size, ranks=processes).micro_batches(recipe.batch.global_size)


def _folder(recipe: Recipe, output: str | Path | None) -> Path:
    if output is None:
        return RUNS / f"{recipe.name}-{recipe.phase}"
    if "://" in os.fspath(output):
        raise InputError(f"--output {output} is not on this machine; give a folder that is.")
    return Path(output)


def _begun(folder: Path) -> RunSpec | None:
    """Return the run in `folder` if it has made a step; until then it may be overwritten."""
    if is_run(folder):
        metrics = folder / METRICS
        return read_run(folder) if metrics.is_file() and metrics.stat().st_size > 0 else None
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if folder.exists() and names - _IGNORED_FILES:
        raise InputError(f"{folder} holds files that are not a run's; give another --output.")
    return None


def _check_same(existing: RunSpec, spec: RunSpec) -> None:
    """Raise InputError unless the existing run in the folder is `spec`."""
    differences = checkpoint.recipe_differences(existing.recipe.settings, spec.recipe)
    if existing.data_sha256 != spec.data_sha256:
        differences.append(f"data: {existing.data!r} there, {spec.data!r} here, of other content")
    sha256s = {start and start.sha256 for start in (existing.start, spec.start)}
    if len(sha256s) > 1:
        differences.append(f"start: {existing.start!r} there, {spec.start!r} here")
    if differences:
        raise InputError(
            f"{spec.folder} is a run with another recipe or other data "
            f"({'; '.join(differences)}); give another --output."
        )


def _resolve_start(phase: Phase, start: str | Path | None, folder: Path) -> Start | None:
    if phase == "pretrain":
        if start is not None:
            raise InputError("pretrain always begins anew; leave out --from.")
        return None
    if start is None:
        start = _newest_pretrained(folder)
    if os.fspath(start) == NOTHING:
        return None
    path = Path(start)
    if path.is_file():
        _refuse_lora(path.parent, path)
        return Start.of(path)
    model = path if (path / ADAPTER).is_file() else path / EXPORT
    adapter = model / ADAPTER
    if not adapter.is_file():
        raise InputError(
            f"{path} is neither an adapter file nor a finished run; give one of them, or "
            f"{NOTHING} to train a new projector and table."
        )
    _refuse_lora(model, path)
    tuned = not is_run(path) or read_run(path).recipe.phase == "finetune"
    return Start.of(adapter, model if tuned else None)


def _refuse_lora(model: Path, named: Path) -> None:
    """Raise InputError if `model` is a LoRA export, whose adapter is only half of the model."""
    if (model / LORA).is_dir():
        raise InputError(
            f"{named} is a LoRA run, or of one, which has no whole model to start from; write "
            "one with `aligntrain merge RUN OUTPUT` and start from that."
        )


def _newest_pretrained(folder: Path) -> Path:
    """Return the most recently finished pretrain run beside `folder`."""
    beside = [p for p in folder.parent.glob("*") if is_run(p) and result_of(p) is not None]
    runs = [p for p in beside if read_run(p).recipe.phase == "pretrain"]
    if not runs:
        raise InputError(
            f"finetune starts from a finished pretrain run and there is none in {folder.parent}; "
            f"name one with --from RUN, or --from {NOTHING} to train a new projector and table."
        )
    return max(runs, key=lambda p: (p / FINISHED).stat().st_mtime_ns)
