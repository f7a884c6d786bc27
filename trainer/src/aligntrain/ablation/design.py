"""An ablation as a YAML file describes it.

recipe: demo                 a recipe's name or file
set: [max_steps=200]         changes of every run, as `--set` takes them
baseline: adaptive           the variant that the others are compared with; by default the first
seeds: [0, 1, 2]
variants:                    changes of each, in both phases; those of one phase under its name
  adaptive: []
  global: [model.mixing=global]
  slow-gate: {finetune: [optimizer.gate_lr=1e-4]}
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from alignshared import InputError
from alignshared.errors import hint
from aligntrain.recipes import PHASES, Phase, Recipe, load_recipe
from aligntrain.recipes.load import read_mapping, read_named, validated, write_yaml
from aligntrain.recipes.schema import Section

PACKAGE = "aligntrain.ablation"


def _folder_name(given: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", str(given)):
        raise PydanticCustomError(
            "name", "should be letters, digits and hyphens, as it names a folder"
        )
    return str(given)


def _list_of_changes(given: Any) -> list[Any]:
    if not isinstance(given or [], list):
        raise PydanticCustomError("changes", "should be a list such as [model.mixing=global]")
    return given or []


def _by_phase(given: Any) -> dict[Any, Any]:
    changes = given if isinstance(given, dict) else dict.fromkeys(PHASES, given)
    return {**dict.fromkeys(PHASES), **changes}


Name = Annotated[str, BeforeValidator(_folder_name)]
Changes = Annotated[list[str], BeforeValidator(_list_of_changes)]
"""Changes of a recipe, as `--set` takes them."""
Variant = Annotated[dict[Phase, Changes], BeforeValidator(_by_phase)]


class _File(Section):
    """All keys of an ablation's YAML file."""

    description: str = ""
    recipe: str
    set: Changes = Field(default_factory=list)
    baseline: Name | None = None
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    variants: dict[Name, Variant] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Design:
    """An ablation: `variants` of `recipe`, by name, compared with `baseline`.

    The variants that are `chosen`, all unless some were named, are to be run with all `seeds`.
    """

    name: str
    recipe: str
    baseline: str
    seeds: tuple[int, ...]
    variants: dict[str, dict[Phase, list[str]]]
    chosen: frozenset[str]

    def resolved(self, variant: str, phase: Phase, seed: int) -> Recipe:
        """Return the recipe of one run.

        Raises:
            InputError: the recipe or a change of it is invalid.
        """
        return load_recipe(self.recipe, phase, self.overrides(variant, phase, seed))

    def overrides(self, variant: str, phase: Phase, seed: int) -> list[str]:
        """Return the changes of one run, as `--set` takes them."""
        return [*self.variants[variant][phase], f"seed={seed}"]

    def text(self, seeds: Sequence[int]) -> str:
        """Return the design with these `seeds` as YAML, everything written out."""
        return write_yaml(
            {
                "recipe": self.recipe,
                "baseline": self.baseline,
                "seeds": list(seeds),
                "variants": self.variants,
            }
        )


def load_design(
    name_or_file: str | Path,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    only: Sequence[str] = (),
) -> Design:
    """Return the ablation called `name_or_file`, or in that file.

    `recipe` takes the place of its own; `overrides` change every run and have the last word, so
    none may change what a chosen variant does; `seeds` is how many to take: its own first, then the
    next whole numbers; `only` names the variants that are chosen, beside the baseline.

    Raises:
        InputError: there is no such ablation, or something in it or in `overrides` is wrong.
    """
    where, text = read_named(name_or_file, PACKAGE, "ablation")
    file = validated(_File, read_mapping(text, where, "ablation"), where)
    baseline = file.baseline or next(iter(file.variants))
    for name in (baseline, *only):
        if name not in file.variants:
            raise InputError(f"{where} has no variant {name}; {hint(name, file.variants)}")
    chosen = frozenset(name for name in file.variants if not only or name in (baseline, *only))
    _check_overrides(
        overrides, {name: own for name, own in file.variants.items() if name in chosen}
    )
    design = Design(
        Path(where).stem,
        recipe or file.recipe,
        baseline,
        _take(file.seeds, seeds),
        {
            name: {phase: [*file.set, *changes[phase], *overrides] for phase in PHASES}
            for name, changes in file.variants.items()
        },
        frozenset(chosen),
    )
    for variant in design.variants:  # errors in any of them show before anything runs
        for phase in PHASES:
            design.resolved(variant, phase, design.seeds[0])
    return design


def _check_overrides(
    overrides: Sequence[str], own: Mapping[str, Mapping[Phase, Sequence[str]]]
) -> None:
    """Raise InputError for one that would undo a change of a variant."""
    for override in overrides:
        key = _key(override)
        if key == "seed":
            raise InputError(
                f"--set {override} would give all runs one seed; say how many with --seeds, or "
                "which in a YAML file of your own."
            )
        for name, changes in own.items():
            for change in (change for phase in PHASES for change in changes[phase]):
                if f"{key}.".startswith(f"{_key(change)}.") or _key(change).startswith(f"{key}."):
                    raise InputError(
                        f"--set {override} would undo {change} of the variant {name}; leave it "
                        "out, choose other variants with --only, or write it under set: in a YAML "
                        "file of your own, where a variant's changes come after it."
                    )


def _key(change: str) -> str:
    return change.partition("=")[0]


def _take(given: Sequence[int], count: int | None) -> tuple[int, ...]:
    """Return `count` seeds: those `given`, then the next whole numbers; by default those given."""
    if count is None:
        return tuple(dict.fromkeys(given))
    if count < 1:
        raise InputError(f"--seeds must be at least 1 (got {count}).")
    beyond = range(max(given) + 1, max(given) + 1 + count)
    return tuple(dict.fromkeys([*given, *beyond]))[:count]
