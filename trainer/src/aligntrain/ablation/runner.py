"""`aligntrain ablate`: train and score all runs of an ablation, one after the other."""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alignshared import AlignError, InputError
from aligntrain.ablation.compare import LOSS, RIGHT_ALL, compare
from aligntrain.ablation.design import load_design
from aligntrain.ablation.report import Outcome, write_outcome
from aligntrain.ablation.runs import Ablation, AblationRun, runs_of
from aligntrain.ablation.score import (
    Progress,
    QuestionSet,
    RunScores,
    check_questions,
    choose_questions,
    drop_weights,
    score_run,
    silent,
)
from aligntrain.data.dataset import open_dataset
from aligntrain.evaluate.short_answers import holds_out
from aligntrain.runs.folder import read_run, required_levels
from aligntrain.train.run import RUNS
from aligntrain.train.run import run as train

log = logging.getLogger("aligntrain")

DESIGN = "ablation.yaml"


def open_ablation(
    name_or_file: str | Path,
    pretrain_data: str | os.PathLike[str],
    finetune_data: str | os.PathLike[str],
    *,
    output: str | Path | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    only: Sequence[str] = (),
) -> Ablation:
    """Return the ablation `name_or_file` on these data, in the folder `output` (by default
    `runs/ablation-<name>`). The other arguments are those of `load_design`.

    Raises:
        InputError: the design or the folder cannot be used.
    """
    design = load_design(name_or_file, recipe=recipe, overrides=overrides, seeds=seeds, only=only)
    folder = RUNS / f"ablation-{design.name}" if output is None else Path(output)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / DESIGN).is_file():
        raise InputError(f"{folder} holds something else than an ablation; give another --output.")
    return Ablation(
        design, folder, os.fspath(pretrain_data), os.fspath(finetune_data), runs_of(design, folder)
    )


def ablate(
    ablation: Ablation,
    *,
    questions: str | Path | None = None,
    kinds: Sequence[str] = (),
    nproc: int | None = None,
    keep_models: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Train every unfinished run of `ablation`, score all runs, and write the report.

    A run that fails is reported and the others go on; the same call continues with what is missing.
    Finished runs are scored first, and the report is written anew after every fine-tuning.

    Args:
        ablation: from `open_ablation`.
        questions: JSON file of held-out questions (see `read_questions`); by default those recorded
            in the ablation's folder, or those with short answers in the rows held out of
            fine-tuning.
        kinds: kinds of questions to ask; by default those recorded, or all.
        nproc: processes of a run; by default one per GPU, or one.
        keep_models: keep the weights of every run; otherwise only metrics, answers and the adapter
            file stay.
        progress: opened while questions are answered.

    Raises:
        InputError: the questions or the data cannot be used, finished runs answered other
            questions, or there is nothing to score by; nothing was started.
        AlignError: the disk is full.
    """
    design = ablation.design
    baseline = design.resolved(design.baseline, "finetune", design.seeds[0])
    rows = (ablation.finetune_data, baseline.data.validation_share)
    question_set = choose_questions(ablation.output, questions, kinds, rows)
    check_questions(ablation.output, ablation.runs, question_set)
    _check_data(ablation, question_set)
    ablation.output.mkdir(parents=True, exist_ok=True)
    (ablation.output / DESIGN).write_text(design.text(ablation.seeds), encoding="utf-8")
    question_set.write(ablation.output)
    scored: list[tuple[AblationRun, RunScores]] = []
    failed: dict[str, str] = {}
    for number, run in enumerate(_finished_first(ablation.runs), start=1):
        log.info("%d of %d: %s", number, len(ablation.runs), run.name)
        before = run.finished
        with _record_failure(run, failed):
            _make(ablation, run, nproc, failed)
            if run.phase == "finetune":
                scored.append((run, score_run(run, question_set.questions, progress)))
                if scored[-1][1].unasked:
                    log.warning("%s was not asked: its model was not kept.", run.name)
            if not keep_models:
                drop_weights(run)
        if run.phase == "finetune" and not before:
            write_outcome(_outcome(ablation, question_set, scored, failed))
    outcome = _outcome(ablation, question_set, scored, failed)
    write_outcome(outcome)
    return outcome


def _check_data(ablation: Ablation, question_set: QuestionSet) -> None:
    """Raise InputError for data with which a later run would fail, or no run could be scored."""
    shares: set[float] = set()
    opened: set[tuple[object, ...]] = set()
    for run in ablation.runs:
        recipe, data = ablation.recipe_of(run), ablation.data_of(run)
        plain = recipe.data.template == "plain"
        need = (data, required_levels(recipe), plain, recipe.data.levels, recipe.data.weight)
        if need not in opened:
            opened.add(need)
            open_dataset(recipe, data)
        if run.phase == "finetune":
            shares.add(recipe.data.validation_share)
    if not question_set.questions and not any(holds_out(ablation.finetune_data, s) for s in shares):
        raise InputError(
            f"nothing of {ablation.finetune_data} is held out and there are no questions, so no "
            "run could be judged; give --questions, or --set data.validation_share=0.01."
        )


def _finished_first(runs: Sequence[AblationRun]) -> list[AblationRun]:
    """Return `runs` with the finished ones first: the report stays complete while others train."""
    finished = {run.folder for run in runs if run.finished}
    return sorted(runs, key=lambda run: not {run.folder, run.start or run.folder} <= finished)


def _outcome(
    ablation: Ablation,
    question_set: QuestionSet,
    scored: Sequence[tuple[AblationRun, RunScores]],
    failed: dict[str, str],
) -> Outcome:
    """Return the results so far."""
    design = ablation.design
    values: dict[str, dict[str, dict[int, float]]] = {}
    for run, scores in scored:
        for metric, value in scores.values.items():
            by_variant = values.setdefault(metric, {name: {} for name in design.variants})
            by_variant[run.variant][run.seed] = value
    compared = [
        compare(metric, values[metric], design.baseline)
        for metric in sorted(values, key=lambda m: (m != LOSS, m != RIGHT_ALL, m))
    ]
    unasked = [run.name for run, scores in scored if scores.unasked]
    return Outcome(ablation, question_set, compared, dict(failed), unasked)


@contextmanager
def _record_failure(run: AblationRun, failed: dict[str, str]) -> Iterator[None]:
    """Record a failure of `run` and let the other runs go on, except on a full disk."""
    try:
        yield
        return
    except AlignError as error:
        reason = str(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AlignError(
                f"there is no room left for {run.folder}; make some and run the same command."
            ) from error
        reason = f"{error}."
    log.warning("%s failed: %s", run.name, reason)
    failed[run.name] = reason


def _make(ablation: Ablation, run: AblationRun, nproc: int | None, failed: dict[str, str]) -> None:
    if run.start is not None and f"pretrain/{run.start.name}" in failed:
        raise AlignError(f"its pre-training, pretrain/{run.start.name}, failed.")
    result = train(
        run.phase,
        ablation.data_of(run),
        recipe=ablation.design.recipe,
        overrides=run.overrides,
        output=run.folder,
        resume=True,
        nproc=nproc,
        isolated=True,
        start=run.start,
    )
    if not result.before or run.phase == "pretrain":
        return
    # A resumed run may have changed on how many rows the loss is measured.
    before = read_run(run.folder).recipe.log.validate_samples
    now = ablation.recipe_of(run).log.validate_samples
    if before != now:
        raise InputError(
            f"its loss was measured with log.validate_samples {before or 'null'}, and that of the "
            f"others is with {now or 'null'}; give the same, or another --output."
        )
