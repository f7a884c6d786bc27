"""Scoring models from the options --model, --weights and --main."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aligncurate.core.clip import ResolvedClip, resolve_clip
from aligncurate.settings import View
from alignshared import InputError
from alignshared.schema import score_column

_NAMED = re.compile(r"(\w+)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Models:
    """The main model and, if there are several, all of them by name."""

    main: ResolvedClip
    several: dict[str, ResolvedClip]


def resolve_models(
    models: Sequence[str], weights: Sequence[str], main: str | None, view: View | None = None
) -> Models:
    """Resolve the models and their weights.

    Args:
        models: `MODEL` or `NAME=MODEL` each; the default name is the model's own, made safe.
        weights: `WEIGHTS` for one model, `NAME=WEIGHTS` for one of several.
        main: name of the model behind `score`; by default the first.
        view: framing of images for all of them; None is each model's own.

    Raises:
        InputError: two models share a name, or a name or model is unknown.
    """
    sources = _by_name(models)
    weights_of = _weights_by_name(list(sources), weights)
    if main is not None and main not in sources:
        raise InputError(f"--main {main} is none of the models {', '.join(sources)}; give one.")
    clips = {
        name: resolve_clip(model, weights_of.get(name)).with_view(view)
        for name, model in sources.items()
    }
    first = next(iter(clips))
    return Models(clips[main or first], clips if len(clips) > 1 else {})


def refuse_taken_columns(models: Iterable[str], own_columns: Sequence[str]) -> None:
    """Raise InputError if the input already has a score column of one of `models`.

    Names are compared case-insensitively, as in databases.
    """
    taken = {column.lower() for column in own_columns}
    for name in models:
        if score_column(name).lower() in taken:
            raise InputError(
                f"the input has a column {score_column(name)} already; give the model another name "
                "with --model NAME=MODEL."
            )


def safe_name(model: str) -> str:
    """Column-safe form of a model name: `vit_b_32` for `ViT-B-32`, the last part of a folder or
    `hf-hub:` name.
    """
    last = model.rstrip("/").replace(":", "/").rpartition("/")[2]
    return re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_") or "model"


def _by_name(models: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for given in models:
        match = _NAMED.fullmatch(given)
        name, model = match.groups() if match else (safe_name(given), given)
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise InputError(
                f"--model {given}: a name has letters from a to z, digits and _ alone; give "
                "another NAME=MODEL."
            )
        if name.lower() in (known.lower() for known in named):
            raise InputError(
                f"two models are called {name}; give each a name of its own with --model "
                "NAME=MODEL."
            )
        named[name] = model
    return named


def _weights_by_name(names: list[str], weights: Sequence[str]) -> dict[str, str]:
    if len(names) == 1 and len(weights) == 1:
        # `NAME=` is allowed here too, and a path may contain an equals sign.
        return {names[0]: weights[0].removeprefix(f"{names[0]}=")}
    named: dict[str, str] = {}
    for given in weights:
        name, _, value = given.partition("=")
        if name not in names or not value:
            raise InputError(
                f"--weights {given} does not say which model it is for; give NAME=WEIGHTS with a "
                f"name of {', '.join(names)}."
            )
        if name in named:
            raise InputError(f"--weights of {name} are given twice; leave one of them out.")
        named[name] = value
    return named
