"""An ablation as a YAML file says it.

recipe: demo                 a recipe's name or file
set: [max_steps=200]         changes of every run, as `--set` takes them
baseline: adaptive           what the others are held against
seeds: [0, 1, 2]
variants:                    changes of each, in both phases; those of one phase under its name
adaptive: []
global: [model.mixing=global]
slow-gate: {finetune: [optimizer.gate_lr=1e-4]}
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from alignshared import InputError
from aligntrain.recipes import PHASES, Phase, Recipe, load_recipe
from aligntrain.recipes.load import read_yaml, write_yaml

_SUFFIX = ".yaml"
_KEYS = ("description", "recipe", "set", "baseline", "seeds", "variants")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Variant:
    """What is changed in the runs of `name`, by phase, as `--set` takes it."""

    name: str
    changes: dict[Phase, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Design:
    """An ablation: `variants` of `recipe`, held against `baseline`. Those that are `chosen`, all
    unless some were named, are to be made with all `seeds`.
    """

    name: str
    recipe: str
    baseline: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    chosen: frozenset[str]

    def resolved(self, variant: Variant, phase: Phase, seed: int) -> Recipe:
        """The recipe of one run.

        Raises:
            InputError: the recipe or a change of it cannot be.
        """
        return load_recipe(self.recipe, phase, self.overrides(variant, phase, seed))

    def overrides(self, variant: Variant, phase: Phase, seed: int) -> list[str]:
        """What is changed in one run, as `--set` takes it."""
        return [*variant.changes[phase], f"seed={seed}"]

    def text(self, seeds: Sequence[int]) -> str:
        """As YAML with these `seeds`, everything written out."""
        variants = {v.name: {p: list(v.changes[p]) for p in PHASES} for v in self.variants}
        return write_yaml(
            {
                "recipe": self.recipe,
                "baseline": self.baseline,
                "seeds": list(seeds),
                "variants": variants,
            }
        )


def design_names() -> list[str]:
    """Names of the ablations that ship, in alphabetical order."""
    here = files("aligntrain.ablation").iterdir()
    return sorted(f.name.removesuffix(_SUFFIX) for f in here if f.name.endswith(_SUFFIX))


def load_design(
    name_or_file: str | Path,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    only: Sequence[str] = (),
) -> Design:
    """The ablation called `name_or_file`, or in that file.

    `recipe` takes the place of its own; `overrides` change every run and have the last word, so
    none may change what a chosen variant does; `seeds` is how many to take: its own first, then the
    next whole numbers; `only` names the variants that are chosen, beside the baseline.

    Raises:
        InputError: there is no such ablation, or something in it or in `overrides` is wrong.
    """
    where, text = _read(name_or_file)
    try:
        content = read_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is no YAML: {' '.join(str(error).split())}.") from error
    _check(content, where)
    common = _several(content.get("set") or [], f"set of {where}")
    own = {
        str(name): _own(changes, f"{name} of {where}")
        for name, changes in content["variants"].items()
    }
    baseline = content.get("baseline", next(iter(own)))
    _check_names(list(own), baseline, only, where)
    chosen = frozenset(name for name in own if not only or name in (baseline, *only))
    _check_overrides(overrides, {name: own[name] for name in own if name in chosen})
    variants = tuple(
        Variant(name, {p: (*common, *changes[p], *overrides) for p in PHASES})
        for name, changes in own.items()
    )
    design = Design(
        Path(where).stem,
        recipe or content["recipe"],
        baseline,
        _seeds(content.get("seeds", [0, 1, 2]), seeds, where),
        variants,
        chosen,
    )
    for variant in variants:  # what is wrong shows before anything runs
        for phase in PHASES:
            design.resolved(variant, phase, design.seeds[0])
    return design


def _read(name_or_file: str | Path) -> tuple[str, str]:
    name = str(name_or_file)
    if name in design_names():
        return name, files("aligntrain.ablation").joinpath(name + _SUFFIX).read_text("utf-8")
    try:
        return name, Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = get_close_matches(name, design_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(design_names())}."
        raise InputError(f"there is no ablation and no file {name}; {hint}") from error


def _check(content: Any, where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{where} is no ablation: it should be a YAML mapping of keys to values.")
    for key in content:
        if key not in _KEYS:
            near = get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}."
            raise InputError(f"{where} has the unknown key {key}; {hint}")
    if not isinstance(content.get("recipe"), str):
        raise InputError(f"{where} names no recipe; add recipe: NAME.")
    if not isinstance(content.get("variants"), dict) or not content["variants"]:
        raise InputError(f"{where} has no variants; name at least one with its changes.")


def _several(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{where} should be a list of changes such as model.mixing=global.")
    return tuple(values)


def _own(given: Any, where: str) -> dict[Phase, tuple[str, ...]]:
    """What a variant itself changes, by phase."""
    by_phase: dict[str, Any] = given if isinstance(given, dict) else dict.fromkeys(PHASES, given)
    unknown = sorted(set(by_phase) - set(PHASES))
    if unknown:
        raise InputError(f"{where} has the phase {unknown[0]}; give {' or '.join(PHASES)}.")
    return {phase: _several(by_phase.get(phase) or [], where) for phase in PHASES}


def _check_overrides(
    overrides: Sequence[str], own: Mapping[str, Mapping[Phase, Sequence[str]]]
) -> None:
    """Raise InputError for one that would undo what a variant does, which then would be another
    under its name.
    """
    for override in overrides:
        key = _key(override)
        if key == "seed":
            raise InputError(
                f"--set {override} cannot be: every run has a seed of the ablation's own; say how "
                "many with --seeds, or which in a YAML file of your own."
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


def _check_names(names: Sequence[str], baseline: str, only: Sequence[str], where: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{where} has a variant {name!r}, which cannot be a folder's name; use letters, "
                "digits and hyphens."
            )
    for name in (baseline, *only):
        if name not in names:
            raise InputError(f"{where} has no variant {name}; there are {', '.join(names)}.")


def _seeds(given: Any, count: int | None, where: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(seed) is int for seed in given):
        raise InputError(f"the seeds of {where} should be a list of whole numbers.")
    if count is None:
        return tuple(dict.fromkeys(given))
    if count < 1:
        raise InputError(f"--seeds {count} cannot be: give 1 or more.")
    beyond = range(max(given) + 1, max(given) + 1 + count)
    return tuple(dict.fromkeys([*given, *beyond]))[:count]
