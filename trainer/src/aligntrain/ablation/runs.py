"""The runs that an ablation comes to: fine-tunings by variant and seed, each on its pre-training.

Variants share a pre-training where it would be the same. In pre-training each pair's own level is
taken, so mixing, the gate and the table that fine-tuning begins with make no difference to it; only
`none`, which has no table, has one of its own.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aligntrain.ablation.design import Design, Variant
from aligntrain.recipes import Phase, load_recipe
from aligntrain.runs.folder import EXPORT, is_run, result_of

_ALIKE = ("model.mixing=adaptive", "model.table=learned", "model.gate_text=prompt")
"""What a shared pre-training is made with."""

_TUNED = "finetune"
_WHOLE = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of `phase` with `seed`, in `folder`; `overrides` are its changes of the recipe.

    `variant` is whose it is, of a shared pre-training the first one's; `start` is the folder of the
    pre-training that a fine-tuning goes on from.
    """

    variant: str
    seed: int
    phase: Phase
    folder: Path
    overrides: tuple[str, ...]
    start: Path | None = None

    @property
    def name(self) -> str:
        """What to call it: `pretrain/adaptive-seed0`."""
        return f"{self.phase}/{self.folder.name}"

    @property
    def finished(self) -> bool:
        """Whether it was finished by an earlier command."""
        return is_run(self.folder) and result_of(self.folder) is not None

    @property
    def begun(self) -> bool:
        """Whether there is something of it."""
        return is_run(self.folder)

    @property
    def seconds(self) -> float | None:
        """How long it took, None if it is not finished."""
        ending = result_of(self.folder) if self.finished else None
        return None if ending is None else float(ending["seconds"])

    @property
    def export(self) -> Path:
        """The folder of its trained model."""
        return self.folder / EXPORT


def cells_of(design: Design, output: Path) -> list[Cell]:
    """All runs of `design` below `output`, in the order in which they are to be made: seed by seed,
    so that there is something to compare as early as can be.

    Of variants that are not chosen, and of other seeds, those are among them that are finished: an
    ablation that is called for a part of it keeps what it has.
    """
    cells: list[Cell] = []
    for seed in (*design.seeds, *_other_seeds(design, output)):
        shared: dict[str, Cell] = {}
        # Over all variants, so that a pre-training has one folder whichever are chosen.
        for variant in _baseline_first(design):
            pretrain = _pretrain(design, variant, seed, output)
            start = shared.setdefault(_key(design, pretrain.overrides), pretrain)
            folder = output / _TUNED / f"{variant.name}-seed{seed}"
            overrides = tuple(design.overrides(variant, "finetune", seed))
            tuned = Cell(variant.name, seed, "finetune", folder, overrides, start=start.folder)
            wanted = variant.name in design.chosen and seed in design.seeds
            if start not in cells and (wanted or (tuned.finished and start.finished)):
                cells.append(start)
            if wanted or tuned.finished:
                cells.append(tuned)
    return cells


def _other_seeds(design: Design, output: Path) -> list[int]:
    """Those of runs that are there beside the seeds of `design`, ascending."""
    names = {variant.name for variant in design.variants}
    found: set[int] = set()
    for folder in (output / _TUNED).glob("*-seed*"):
        name, _, seed = folder.name.rpartition("-seed")
        if name in names and _WHOLE.fullmatch(seed):
            found.add(int(seed))
    return sorted(found - set(design.seeds))


def _baseline_first(design: Design) -> Sequence[Variant]:
    return sorted(design.variants, key=lambda variant: variant.name != design.baseline)


def _pretrain(design: Design, variant: Variant, seed: int, output: Path) -> Cell:
    recipe = design.resolved(variant, "pretrain", seed)
    alike = () if recipe.model.mixing == "none" else _ALIKE
    overrides = (*design.overrides(variant, "pretrain", seed), *alike)
    folder = output / "pretrain" / f"{variant.name}-seed{seed}"
    return Cell(variant.name, seed, "pretrain", folder, overrides)


def _key(design: Design, overrides: Sequence[str]) -> str:
    """The same for pre-trainings that are the same."""
    settings = load_recipe(design.recipe, "pretrain", overrides).settings
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
