"""`aligntrain ablate`: all runs of an ablation, one after the other, and what they came to."""

import errno
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alignshared import AlignError, InputError
from aligntrain.ablation.compare import LOSS, RIGHT_ALL, Comparison, compare
from aligntrain.ablation.design import Design, load_design
from aligntrain.ablation.questions import Asked, check_asked, choose_questions
from aligntrain.ablation.report import write_outcome
from aligntrain.ablation.runs import Cell, cells_of
from aligntrain.ablation.score import Judged, Progress, drop_weights, judge, silent
from aligntrain.data.dataset import open_dataset
from aligntrain.evaluate.short_answers import holds_out
from aligntrain.recipes import Recipe, load_recipe
from aligntrain.runs.folder import read_run, required_levels
from aligntrain.train.run import RUNS, run

log = logging.getLogger("aligntrain")

DESIGN = "ablation.yaml"


@dataclass(frozen=True, slots=True)
class Ablation:
    """A design with its data: what `plan_ablation` and `ablate` work on."""

    design: Design
    output: Path
    pretrain_data: str
    finetune_data: str
    cells: list[Cell]

    @property
    def seeds(self) -> list[int]:
        """Those of its runs, also of runs that are there beside those of the design."""
        return sorted({cell.seed for cell in self.cells})

    def recipe_of(self, cell: Cell) -> Recipe:
        """The recipe of a run."""
        return load_recipe(self.design.recipe, cell.phase, cell.overrides)

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
    """What an ablation came to, with what was `asked`; `failed` has the reason by the name of a
    run, `unasked` names those whose models were not kept and that were never asked.
    """

    ablation: Ablation
    asked: Asked
    comparisons: list[Comparison]
    failed: dict[str, str]
    unasked: list[str]


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
    kinds: Sequence[str] = (),
    nproc: int | None = None,
    keep_models: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Make all runs of `ablation` that are not finished, judge them, and write what they came to.

    A run that fails is named, and the others are made; the same call goes on with what is missing.
    Finished runs are taken over first, and what is known so far is written after every fine-tuning.

    Args:
        ablation: what `open_ablation` gave.
        questions: JSON file of held-out questions (see `read_questions`); by default those that
            were asked before in its folder, or those with short answers in the rows that
            fine-tuning leaves out.
        kinds: of these kinds alone; by default those of before, or all.
        nproc: processes of a run; by default one for each GPU, or one.
        keep_models: keep the weights of every run; otherwise what is judged leaves its metrics,
            answers and small adapter file.
        progress: opened while questions are asked.

    Raises:
        InputError: the questions or the data cannot be used, finished runs answered other
            questions, or there is nothing to judge by; nothing was begun.
        AlignError: the disk is full.
    """
    rows = (ablation.finetune_data, _baseline(ablation.design).data.validation_share)
    asked = choose_questions(ablation.output, questions, kinds, rows)
    check_asked(ablation.output, ablation.cells, asked)
    _check_data(ablation, asked)
    ablation.output.mkdir(parents=True, exist_ok=True)
    (ablation.output / DESIGN).write_text(ablation.design.text(ablation.seeds), encoding="utf-8")
    asked.write(ablation.output)
    found = _Found()
    for number, cell in enumerate(_taken_over_first(ablation.cells), start=1):
        log.info("%d of %d: %s", number, len(ablation.cells), cell.name)
        before = cell.finished
        with _noting(cell, found):
            _make(ablation, cell, nproc, found.failed)
            if cell.phase == "finetune":
                found.add(cell, judge(cell, asked.questions, progress))
            if not keep_models:
                drop_weights(cell)
        if cell.phase == "finetune" and not before:
            write_outcome(ablation.output, found.outcome(ablation, asked))
    outcome = found.outcome(ablation, asked)
    write_outcome(ablation.output, outcome)
    return outcome


def _baseline(design: Design) -> Recipe:
    """The baseline's recipe of fine-tuning."""
    variant = next(v for v in design.variants if v.name == design.baseline)
    return design.resolved(variant, "finetune", design.seeds[0])


def _check_data(ablation: Ablation, asked: Asked) -> None:
    """Raise InputError for data that would have some runs fail once others have trained for days,
    or with which none of them could be judged.
    """
    shares: set[float] = set()
    opened: set[tuple[object, ...]] = set()
    for cell in ablation.cells:
        recipe, data = ablation.recipe_of(cell), ablation.data_of(cell)
        need = (data, required_levels(recipe), recipe.data.template == "plain", recipe.data.levels)
        if need not in opened:
            opened.add(need)
            open_dataset(recipe, data)
        if cell.phase == "finetune":
            shares.add(recipe.data.validation_share)
    if not asked.questions and not any(holds_out(ablation.finetune_data, s) for s in shares):
        raise InputError(
            f"nothing of {ablation.finetune_data} is held out and there are no questions, so no "
            "run could be judged; give --questions, or --set data.validation_share=0.01."
        )


def _taken_over_first(cells: Sequence[Cell]) -> list[Cell]:
    """So that the report loses nothing for as long as the others train."""
    finished = {cell.folder for cell in cells if cell.finished}
    return sorted(
        cells, key=lambda c: c.folder not in finished or (c.start or c.folder) not in finished
    )


class _Found:
    """What is known so far."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, dict[int, float]]] = {}
        self.failed: dict[str, str] = {}
        self.unasked: list[str] = []

    def add(self, cell: Cell, judged: Judged) -> None:
        for metric, value in judged.values.items():
            self.values.setdefault(metric, {}).setdefault(cell.variant, {})[cell.seed] = value
        if judged.unasked:
            log.warning("%s was not asked: its model was not kept.", cell.name)
            self.unasked.append(cell.name)

    def outcome(self, ablation: Ablation, asked: Asked) -> Outcome:
        order = sorted(self.values, key=lambda m: (m != LOSS, m != RIGHT_ALL, m))
        names = [variant.name for variant in ablation.design.variants]
        compared = [
            compare(metric, {n: found[n] for n in names if n in found}, ablation.design.baseline)
            for metric, found in ((m, self.values[m]) for m in order)
        ]
        return Outcome(ablation, asked, compared, dict(self.failed), list(self.unasked))


@contextmanager
def _noting(cell: Cell, found: _Found) -> Iterator[None]:
    """Have the other runs go on where `cell` fails, but not on a full disk."""
    try:
        yield
        return
    except AlignError as error:
        reason = str(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AlignError(
                f"there is no room left for {cell.folder}; make some, and the same command goes on."
            ) from error
        reason = f"{error}."
    log.warning("%s failed: %s", cell.name, reason)
    found.failed[cell.name] = reason


def _make(ablation: Ablation, cell: Cell, nproc: int | None, failed: dict[str, str]) -> None:
    if cell.start is not None and f"pretrain/{cell.start.name}" in failed:
        raise AlignError(f"its pre-training, pretrain/{cell.start.name}, failed.")
    result = run(
        cell.phase,
        ablation.data_of(cell),
        recipe=ablation.design.recipe,
        overrides=cell.overrides,
        output=cell.folder,
        resume=True,
        nproc=nproc,
        isolated=True,
        start=cell.start,
    )
    if result.before and cell.phase == "finetune":
        _check_validation(cell, ablation.recipe_of(cell))


def _check_validation(cell: Cell, here: Recipe) -> None:
    """Raise InputError if the loss of the finished run `cell` was measured on other rows: a run may
    change how many when it goes on, and here its loss is held against others.
    """
    there, wanted = read_run(cell.folder).recipe.log.validate_samples, here.log.validate_samples
    if there != wanted:
        raise InputError(
            f"its loss was measured with log.validate_samples {there or 'null'}, and that of the "
            f"others is with {wanted or 'null'}; give the same, or another --output."
        )
