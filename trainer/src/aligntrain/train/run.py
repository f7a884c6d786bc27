"""`aligntrain run`: a run folder, and processes that work on it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import InputError
from aligntrain.model.lora import LORA
from aligntrain.recipes import PHASES, Phase, load_recipe
from aligntrain.recipes.schema import Recipe
from aligntrain.runs.folder import (
    ADAPTER,
    EXPORT,
    FINISHED,
    METRICS,
    Job,
    Start,
    ending_of,
    is_job,
    levels_wanted,
    read_job,
    write_job,
)
from aligntrain.train import checkpoint
from aligntrain.train.launch import launch, process_count
from aligntrain.train.loggers import check_trackers

if TYPE_CHECKING:
    from aligntrain.data.dataset import ShardedDataset

RUNS = Path("runs")
"""Where run folders lie that nobody has named: `runs/<recipe>-<phase>`."""

NOTHING = "none"
"""As a start: fine-tune a new projector, table and gate."""

_WHATEVER_THERE = frozenset({".DS_Store"})


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its folder and how it ended (`steps`, `loss`, `validation_loss`, `seconds`,
    `rejected`, `truncated`). `before` says that it was finished already, and nothing was done.
    """

    folder: Path
    ending: dict[str, Any]
    before: bool = False


def run(  # noqa: PLR0913 - what a run can be told
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
) -> RunResult:
    """Train `phase` on the dataset `data`, as `recipe` with `overrides` says.

    Args:
        phase: `pretrain` or `finetune`.
        data: folder or URI of a dataset; a levelled one for pre-training.
        recipe: a recipe's name or file.
        overrides: `a.b=value`, as `--set` takes them.
        output: the run folder, by default `runs/<recipe>-<phase>`.
        resume: go on from the newest whole checkpoint there, if there is one.
        nproc: processes; by default one for each GPU of this machine, or one.
        start: what fine-tuning goes on from: a run folder, a model that `merge` wrote, an adapter
            file, or `none` for a new projector and table. By default the newest finished pretrain
            run beside `output`.
        profile: how many steps the first process profiles, into the run folder.

    Raises:
        InputError: the recipe, the data, the start or the folder cannot be used.
        AlignError: the run failed.
    """
    if profile is not None and profile < 1:
        raise InputError(f"--profile {profile} cannot be: give 1 step or more.")
    job, done = _prepared(phase, data, recipe, overrides, output, resume, start)
    if done is not None:
        return RunResult(job.folder, done, before=True)
    count, _ = process_count(nproc)
    _check_batch(job.recipe, count)
    write_job(job)
    launch(job.folder, resume=resume, nproc=nproc, profile=profile)
    ending = ending_of(job.folder)
    assert ending is not None  # a worker that returned 0 has written it
    return RunResult(job.folder, ending)


def prepare(
    phase: Phase,
    data: str | os.PathLike[str],
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    resume: bool = False,
    start: str | Path | None = None,
) -> Path:
    """Make the run folder and start nothing: torchrun or the deepspeed launcher do (see `worker`).

    Arguments and errors are those of `run`.
    """
    job, done = _prepared(phase, data, recipe, overrides, output, resume, start)
    if done is None:
        write_job(job)
    return job.folder


def open_shards(recipe: Recipe, data: str | os.PathLike[str]) -> "ShardedDataset":
    """The dataset `data` as a run of `recipe` reads it.

    Raises:
        InputError: it cannot be trained on with this recipe.
    """
    from aligntrain.data.dataset import ShardedDataset, relevel_of

    return ShardedDataset(
        data,
        levels=levels_wanted(recipe),
        conversations=recipe.data.template != "plain",
        relevel=relevel_of(recipe.data.levels, recipe.seed),
    )


def _prepared(
    phase: Phase,
    data: str | os.PathLike[str],
    recipe: str | Path,
    overrides: Sequence[str],
    output: str | Path | None,
    resume: bool,
    start: str | Path | None,
) -> tuple[Job, dict[str, Any] | None]:
    """The run, checked as far as can be without a model; and how it ended, if it is finished."""
    if phase not in PHASES:
        raise InputError(f"the phase {phase} is unknown; give {' or '.join(PHASES)}.")
    resolved = load_recipe(recipe, phase, overrides)
    check_trackers(resolved)
    folder = _folder(resolved, output)
    shards = open_shards(resolved, data)
    there = read_job(folder) if _has_begun(folder) else None
    # A run that is there keeps its start, whatever has been pretrained since.
    begin = there.start if there is not None and start is None else _start(phase, start, folder)
    job = Job(folder, resolved, shards.location, shards.digest, begin)
    done = None
    if there is not None:
        _check_same(there, job)
        done = ending_of(folder)
        if done is None and not resume:
            _refuse_unfinished(folder)
    elif folder.exists() and not _is_empty(folder) and not is_job(folder):
        raise InputError(f"{folder} holds something else than a run; give another --output.")
    if done is None and resolved.data.verify:
        shards.verify()
    return job, done


def _folder(recipe: Recipe, output: str | Path | None) -> Path:
    if output is None:
        return RUNS / f"{recipe.name}-{recipe.phase}"
    if "://" in os.fspath(output):
        raise InputError(f"--output {output} is not on this machine; give a folder that is.")
    return Path(output)


def _has_begun(folder: Path) -> bool:
    """Whether a step of the run in `folder` was made; until then it may be made anew."""
    metrics = folder / METRICS
    return is_job(folder) and metrics.is_file() and metrics.stat().st_size > 0


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not {p.name for p in folder.iterdir()} - _WHATEVER_THERE


def _check_batch(recipe: Recipe, processes: int) -> None:
    from aligntrain.data.loader import RankSlice

    RankSlice(recipe.batch.micro_size, ranks=processes).micro_batches(recipe.batch.global_size)


def _check_same(there: Job, here: Job) -> None:
    """Raise InputError unless the run that a folder holds is the one that is wanted."""
    differences = checkpoint.recipe_differences(there.recipe.settings, here.recipe)
    if there.data_sha256 != here.data_sha256:
        differences.append(f"data: {there.data!r} there, {here.data!r} here, of other content")
    if _sha256(there.start) != _sha256(here.start):
        differences.append(f"start: {there.start!r} there, {here.start!r} here")
    if differences:
        raise InputError(
            f"{here.folder} is a run with another recipe or other data "
            f"({'; '.join(differences)}); give another --output."
        )


def _sha256(start: Start | None) -> str | None:
    return None if start is None else start.sha256


def _refuse_unfinished(folder: Path) -> None:
    newest = checkpoint.newest_checkpoint(folder)
    if newest is not None:
        raise InputError(
            f"{folder} is an unfinished run with a checkpoint of step {newest.step}; give --resume "
            "to go on from it, or another --output."
        )


def _start(phase: Phase, start: str | Path | None, folder: Path) -> Start | None:
    if phase == "pretrain":
        if start is not None:
            raise InputError("pretrain begins anew; leave out what to start from.")
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
    tuned = not is_job(path) or read_job(path).recipe.phase == "finetune"
    return Start.of(adapter, model if tuned else None)


def _refuse_lora(model: Path, named: Path) -> None:
    """Raise InputError where `model` is an export of LoRA, whose adapter alone is half of it."""
    if (model / LORA).is_dir():
        raise InputError(
            f"{named} is a LoRA run, or of one, which leaves no whole model to start from; write "
            "one with `aligntrain merge RUN OUTPUT` and start from that."
        )


def _newest_pretrained(folder: Path) -> Path:
    """The pretrain run beside `folder` that was finished last."""
    beside = [p for p in folder.parent.glob("*") if is_job(p) and ending_of(p) is not None]
    runs = [p for p in beside if read_job(p).recipe.phase == "pretrain"]
    if not runs:
        raise InputError(
            f"finetune goes on from a finished pretrain run and there is none in {folder.parent}; "
            f"say which with --from RUN, or --from {NOTHING} to train a new projector and table."
        )
    return max(runs, key=lambda p: (p / FINISHED).stat().st_mtime_ns)
