"""`aligntrain ablate`: all runs of an ablation, one after the other, and what they came to."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignshared import AlignError, InputError
from aligntrain.ablation.cells import Cell, cells_of
from aligntrain.ablation.compare import LOSS, Comparison, compare
from aligntrain.ablation.design import Design, load_design
from aligntrain.ablation.judge import drop_weights, judge
from aligntrain.ablation.record import write_outcome
from aligntrain.held_out import HeldOut, questions_of_rows, read_questions
from aligntrain.run import RUNS, run

log = logging.getLogger("aligntrain")

DESIGN = "ablation.yaml"

Progress = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True, slots=True)
class Ablation:
    """A design with its data: what `plan_ablation` and `ablate` work on."""

    design: Design
    output: Path
    pretrain_data: str
    finetune_data: str
    cells: list[Cell]

    def data_of(self, cell: Cell) -> str:
        """The dataset of a run."""
        return self.pretrain_data if cell.phase == "pretrain" else self.finetune_data


@dataclass(frozen=True, slots=True)
class Planned:
    """The runs, and how long those that are left take, in seconds, judged by the finished ones of
    the same phase; None where none of a phase that is left is finished yet.
    """

    ablation: Ablation
    left: list[Cell]
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an ablation came to; `failed` has the reason by the name of a run."""

    ablation: Ablation
    comparisons: list[Comparison]
    failed: dict[str, str]
    questions: dict[str, int]


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
    """The ablation `name_or_file` on these data, in the folder `output`; by default
    `runs/ablation-<name>`. The other arguments are those of `load_design`.

    Raises:
        InputError: the design or the folder cannot be used.
    """
    design = load_design(name_or_file, recipe=recipe, overrides=overrides, seeds=seeds, only=only)
    folder = RUNS / f"ablation-{design.name}" if output is None else Path(output)
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / DESIGN).is_file()
    ):
        raise InputError(f"{folder} holds something else than an ablation; give another --output.")
    return Ablation(
        design, folder, os.fspath(pretrain_data), os.fspath(finetune_data), cells_of(design, folder)
    )


def plan_ablation(ablation: Ablation) -> Planned:
    """What is left to do, and how long that takes by what is done."""
    left = [cell for cell in ablation.cells if not cell.finished]
    known: defaultdict[str, list[float]] = defaultdict(list)
    for cell in ablation.cells:
        if cell.seconds is not None:
            known[cell.phase].append(cell.seconds)
    if any(cell.phase not in known for cell in left):
        return Planned(ablation, left, None)
    mean = {phase: sum(seconds) / len(seconds) for phase, seconds in known.items()}
    return Planned(ablation, left, sum(mean[cell.phase] for cell in left))


def ablate(
    ablation: Ablation,
    *,
    questions: str | Path | None = None,
    nproc: int | None = None,
    keep_models: bool = False,
    progress: Progress = lambda _what, _count: lambda _done: None,
) -> Outcome:
    """Make all runs of `ablation` that are not finished, judge them, and write what they came to.

    A run that fails is named, and the others are made; the same call goes on with what is missing.
    What is known so far is written after every fine-tuning.

    Args:
        ablation: what `open_ablation` gave.
        questions: JSON file of held-out questions (see `read_questions`); by default those with
            short answers in the rows that fine-tuning leaves out.
        nproc: processes of a run; by default one for each GPU, or one.
        keep_models: keep the weights of every run; otherwise what is judged leaves its metrics,
            answers and small adapter file.
        progress: hears of the questions as they are asked.

    Raises:
        InputError: the questions cannot be read.
    """
    asked = _questions(ablation, questions)
    ablation.output.mkdir(parents=True, exist_ok=True)
    (ablation.output / DESIGN).write_text(ablation.design.text(), encoding="utf-8")
    values: dict[str, dict[str, dict[int, float]]] = {}
    failed: dict[str, str] = {}
    for number, cell in enumerate(ablation.cells, start=1):
        log.info("%d of %d: %s", number, len(ablation.cells), cell.name)
        try:
            _make(ablation, cell, nproc, failed)
            if cell.phase == "finetune":
                done = progress(cell.name, len(asked))
                for metric, value in judge(cell, asked, done).items():
                    values.setdefault(metric, {}).setdefault(cell.variant, {})[cell.seed] = value
        except AlignError as error:
            log.warning("%s failed: %s", cell.name, error)
            failed[cell.name] = str(error)
            continue
        if not keep_models:
            drop_weights(cell)
        if cell.phase == "finetune":
            outcome = _outcome(ablation, values, failed, asked)
            write_outcome(ablation.output, outcome)
    outcome = _outcome(ablation, values, failed, asked)
    write_outcome(ablation.output, outcome)
    return outcome


def _questions(ablation: Ablation, questions: str | Path | None) -> list[HeldOut]:
    if questions is not None:
        return read_questions(Path(questions))
    design = ablation.design
    recipe = design.resolved(design.variants[0], "finetune", design.seeds[0])
    return questions_of_rows(ablation.finetune_data, recipe.data.validation_share)


def _make(ablation: Ablation, cell: Cell, nproc: int | None, failed: dict[str, str]) -> None:
    if cell.start is not None and f"pretrain/{cell.start.name}" in failed:
        raise AlignError(f"its pre-training, pretrain/{cell.start.name}, failed.")
    run(
        cell.phase,
        ablation.data_of(cell),
        recipe=ablation.design.recipe,
        overrides=cell.overrides,
        output=cell.folder,
        resume=True,
        nproc=nproc,
        start=cell.start,
    )


def _outcome(
    ablation: Ablation,
    values: dict[str, dict[str, dict[int, float]]],
    failed: dict[str, str],
    asked: list[HeldOut],
) -> Outcome:
    baseline = ablation.design.baseline
    order = sorted(values, key=lambda metric: (metric != LOSS, metric))
    comparisons = [compare(metric, values[metric], baseline) for metric in order]
    kinds = sorted({question.kind for question in asked})
    counts = {kind: sum(question.kind == kind for question in asked) for kind in kinds}
    return Outcome(ablation, comparisons, dict(failed), counts)
