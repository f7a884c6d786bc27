"""The runs of an ablation: fine-tunings by variant and seed, each on its pre-training.

Variants share a pre-training where it would be the same. In pre-training each pair's own level is
taken, so mixing, the gate and the table that fine-tuning begins with make no difference to it; only
`none`, which has no table, has one of its own.
"""

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from aligntrain.ablation.design import Design
from aligntrain.recipes import Phase, Recipe, load_recipe
from aligntrain.runs.folder import EXPORT, is_run, result_of

_ALIKE = ("model.mixing=adaptive", "model.table=learned", "model.gate_text=prompt")
"""Overrides of a shared pre-training."""


@dataclass(frozen=True, slots=True)
class AblationRun:
    """One run of `phase` with `seed`, in `folder`; `overrides` change the recipe.

    A shared pre-training has the first `variant` that uses it; `start` is the folder of the
    pre-training that a fine-tuning starts from.
    """

    variant: str
    seed: int
    phase: Phase
    folder: Path
    overrides: tuple[str, ...]
    start: Path | None = None

    @property
    def name(self) -> str:
        """Phase and folder, such as `pretrain/adaptive-seed0`."""
        return f"{self.phase}/{self.folder.name}"

    @property
    def begun(self) -> bool:
        """Whether the run was started."""
        return is_run(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.seconds is not None

    @property
    def seconds(self) -> float | None:
        """Duration of the run, None if it is not finished."""
        result = result_of(self.folder) if self.begun else None
        return None if result is None else float(result["seconds"])

    @property
    def export(self) -> Path:
        """The folder of the trained model."""
        return self.folder / EXPORT


@dataclass(frozen=True, slots=True)
class Ablation:
    """A design, its data and its runs."""

    design: Design
    output: Path
    pretrain_data: str
    finetune_data: str
    runs: list[AblationRun]

    @property
    def seeds(self) -> list[int]:
        """Seeds of all runs, including existing runs beside those of the design."""
        return sorted({run.seed for run in self.runs})

    @property
    def left(self) -> list[AblationRun]:
        """Runs that are not finished."""
        return [run for run in self.runs if not run.finished]

    @property
    def seconds_left(self) -> float | None:
        """Estimated time of the runs left, by finished runs of the same phase; None if a phase has
        no finished run yet.
        """
        known: defaultdict[Phase, list[float]] = defaultdict(list)
        for run in self.runs:
            if run.seconds is not None:
                known[run.phase].append(run.seconds)
        if any(run.phase not in known for run in self.left):
            return None
        mean = {phase: sum(seconds) / len(seconds) for phase, seconds in known.items()}
        return sum(mean[run.phase] for run in self.left)

    def recipe_of(self, run: AblationRun) -> Recipe:
        """Return the recipe of `run`."""
        return load_recipe(self.design.recipe, run.phase, run.overrides)

    def data_of(self, run: AblationRun) -> str:
        """Return the dataset of `run`."""
        return self.pretrain_data if run.phase == "pretrain" else self.finetune_data


def runs_of(design: Design, output: Path) -> list[AblationRun]:
    """Return all runs of `design` below `output` in the order of training: seed by seed, so that
    there is something to compare as early as possible.

    Finished runs of other seeds and of variants that are not chosen are included: calling an
    ablation for a part of it keeps the rest.
    """
    runs: list[AblationRun] = []
    for seed in (*design.seeds, *_other_seeds(design, output)):
        shared: dict[str, AblationRun] = {}
        # Over all variants, so that a pre-training has one folder whichever are chosen.
        for variant in sorted(design.variants, key=lambda name: name != design.baseline):
            name = f"{variant}-seed{seed}"
            overrides, digest = _pretraining(design, variant, seed)
            pretrain = AblationRun(variant, seed, "pretrain", output / "pretrain" / name, overrides)
            start = shared.setdefault(digest, pretrain)
            overrides = tuple(design.overrides(variant, "finetune", seed))
            folder = output / "finetune" / name
            tuned = AblationRun(variant, seed, "finetune", folder, overrides, start.folder)
            chosen = variant in design.chosen and seed in design.seeds
            if start not in runs and (chosen or (tuned.finished and start.finished)):
                runs.append(start)
            if chosen or tuned.finished:
                runs.append(tuned)
    return runs


def _other_seeds(design: Design, output: Path) -> list[int]:
    """Return the seeds of existing runs that are not seeds of `design`, ascending."""
    seeds: set[int] = set()
    for folder in (output / "finetune").glob("*-seed*"):
        name, _, seed = folder.name.rpartition("-seed")
        if name in design.variants and re.fullmatch(r"-?\d+", seed):
            seeds.add(int(seed))
    return sorted(seeds - set(design.seeds))


def _pretraining(design: Design, variant: str, seed: int) -> tuple[tuple[str, ...], str]:
    """Return the overrides of the pre-training of `variant`, and a digest of its settings."""
    recipe = design.resolved(variant, "pretrain", seed)
    alike = () if recipe.model.mixing == "none" else _ALIKE
    overrides = (*design.overrides(variant, "pretrain", seed), *alike)
    settings = load_recipe(design.recipe, "pretrain", overrides).settings
    text = json.dumps(settings, sort_keys=True)
    return overrides, hashlib.sha256(text.encode()).hexdigest()
