"""Load a recipe, by name or from a file, for one phase; read and write its YAML.

A file has the sections `common`, `pretrain` and `finetune`; a phase's section overrides `common`
key by key. With `base: NAME` the file overrides another recipe: its sections, `common` too, take
precedence over everything in the base. A file saved by a run is for one phase: it has `name` and
`phase` and none of these sections.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from alignshared import InputError
from alignshared.errors import hint, one_line
from aligntrain.recipes.schema import PHASES, Phase, Recipe, Section, Settings

# PyYAML reads YAML 1.1, in which 1e-3 is a string.
_NUMBER = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} occurs twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """Return the value of the YAML `text`.

    Raises:
        yaml.YAMLError: it is not YAML, or a mapping has a key twice.
    """
    return yaml.load(text, _Loader)


def write_yaml(value: Any) -> str:
    """Return `value` as YAML that `read_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


_PACKAGE = "aligntrain.recipes"
_SUFFIX = ".yaml"

Values = dict[str, Any]
T = TypeVar("T", bound=BaseModel)


class _File(Section):
    """Top level of a recipe file; sections are validated against Settings after merging."""

    base: str | None = None
    description: str = ""
    common: Values = Field(default_factory=dict)
    pretrain: Values = Field(default_factory=dict)
    finetune: Values = Field(default_factory=dict)


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes in alphabetical order."""
    return shipped(_PACKAGE)


def shipped(package: str) -> list[str]:
    """Return the names of the YAML files that ship in `package`, in alphabetical order."""
    names = [file.name for file in files(package).iterdir()]
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def load_recipe(
    name_or_file: str | Path, phase: Phase | None, overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe named `name_or_file`, or in that file, for `phase`.

    `overrides` are `a.b=value` with a YAML value, as for `--set`. `phase` may be None for a file
    saved by a run, which is for one phase.

    Raises:
        InputError: there is no such recipe, a key in it or in `overrides` is unknown, missing or of
            the wrong type, or the file is for another phase.
    """
    where, text = read_named(name_or_file, _PACKAGE, "recipe")
    content = read_mapping(text, where)
    if "phase" in content:
        recipe = _saved(content, where)
        if phase not in (None, recipe.phase):
            raise InputError(
                f"{where} is the recipe of a {recipe.phase} run and cannot be used for {phase}; "
                f"give the recipe that it was made from, {recipe.name}."
            )
        values, name, phase = recipe.settings, recipe.name, recipe.phase
        del values["name"], values["phase"]
    else:
        if phase is None:
            raise InputError(f"{where} is for several phases; say which: {' or '.join(PHASES)}.")
        values = _resolve(content, where, ())[phase]
        name = where if where in recipe_names() else Path(where).stem
    for override in overrides:
        values = _overlay(values, _parsed(override))
    source = f"--set {' --set '.join(overrides)}" if overrides else where
    settings = validated(Settings, values, source)
    _check_phase(settings, phase, source)
    return Recipe(name=name, phase=phase, **dict(settings))


def dump(recipe: Recipe) -> str:
    """Return `recipe` as YAML with every key; `loads` and `load_recipe` read it back equal."""
    values = recipe.settings
    first = {key: values.pop(key) for key in ("name", "phase")}
    return write_yaml(first | values)


def loads(text: str, where: str = "the recipe") -> Recipe:
    """Return the recipe that `dump` wrote as `text`; `where` names it in errors.

    Raises:
        InputError: `text` is not such a recipe.
    """
    return _saved(read_mapping(text, where), where)


def read_named(name_or_file: str | Path, package: str, noun: str) -> tuple[str, str]:
    """Return the name for errors, and the text, of a YAML file that ships in `package` or lies
    here; `noun` says what it holds.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    name, path = str(name_or_file), Path(name_or_file)
    if name in shipped(package):
        return name, files(package).joinpath(name + _SUFFIX).read_text("utf-8")
    try:
        return name, path.read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        near = hint(path.stem, shipped(package))
        raise InputError(f"there is no {noun} and no file {name}; {near}") from error
    except (OSError, UnicodeDecodeError) as error:
        article = "an" if noun[0] in "aeiou" else "a"
        raise InputError(f"{name} cannot be read as {article} {noun}: {error}.") from error


def read_mapping(text: str, where: str, noun: str = "recipe") -> Values:
    """Return the mapping that the YAML `text` holds.

    Raises:
        InputError: it is not YAML, or not a mapping with words as keys.
    """
    try:
        content = read_yaml(text)
    except yaml.YAMLError as error:
        raise _not_yaml(error, where) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{where} is no {noun}: it should be a YAML mapping of keys to values.")
    return cast(Values, content)


def _saved(content: Values, where: str) -> Recipe:
    return validated(Recipe, content, where)


def _resolve(content: Values, where: str, above: tuple[str, ...]) -> dict[Phase, Values]:
    """Return the validated settings of all phases: errors in `finetune` show before `pretrain`.

    `above` are the recipes whose bases led here.
    """
    for key in content:
        if key in Settings.model_fields:
            raise InputError(
                f"{where} has the key {key} outside of a section; move it under common, "
                f"{' or '.join(PHASES)}."
            )
    file = validated(_File, content, where)
    values: dict[Phase, Values] = {phase: {} for phase in PHASES}
    if file.base is not None:
        base, text = read_named(_beside(where, file.base), _PACKAGE, "recipe")
        if base in (*above, where):
            raise InputError(
                f"{where} has the base {file.base}, which goes on from {where} itself; leave one "
                "of the two out."
            )
        values = _resolve(read_mapping(text, base), base, (*above, where))
    for phase in PHASES:
        own: Values = getattr(file, phase)
        for section in (file.common, own):
            values[phase] = _overlay(values[phase], section)
        settings = validated(Settings, values[phase], f"{where} ({phase})")
        _check_phase(settings, phase, where)
    return values


def _check_phase(settings: Settings, phase: Phase, where: str) -> None:
    if phase == "pretrain" and settings.lora is not None:
        raise InputError(
            f"{where} sets lora in pretrain, where the LLM does not train; set it in finetune "
            "alone."
        )


def _beside(where: str, base: str) -> str:
    """Return the base to read: a file's path is relative to the file that names it."""
    if base in recipe_names():
        return base
    return str(Path(where).parent / base)


def _overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Return `under` updated with `over`, recursively where both have a mapping."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _overlay(cast(Values, below), cast(Values, value))
        result[key] = value
    return result


def _parsed(override: str) -> Values:
    key, sign, text = override.partition("=")
    where = f"--set {override}"
    if not sign or not key:
        raise InputError(f"{where} sets nothing; write --set section.key=value.")
    known = _keys_of(Settings)
    if key not in known:
        raise _unknown_key(tuple(key.split(".")), known, where)
    try:
        value: Any = read_yaml(text)
    except yaml.YAMLError as error:
        raise _not_yaml(error, where) from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def validated(schema: type[T], values: Values, where: str) -> T:
    """Return `values` as `schema`; `where` names them in errors.

    Raises:
        InputError: a key is unknown, missing or of the wrong type.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _problem_of(error, schema, where) from error


def _problem_of(error: ValidationError, schema: type[BaseModel], where: str) -> InputError:
    """Return the first problem of `error`, from validating `where` against `schema`."""
    errors = error.errors(include_url=False)
    # If one key is unknown and another missing, the first is a misspelling of the second.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = tuple(str(part) for part in first["loc"] if part != "[key]")
    key = ".".join(path)
    match first["type"]:
        case "extra_forbidden":
            return _unknown_key(path, _keys_of(schema), where)
        case "missing":
            return InputError(f"{where} lacks the key {key}; add it.")
        case "too_short":
            expected = "should name at least one"
        case "model_type":
            expected = "should be a section with keys of its own"
        case "value_error":
            within = f"{key}." if key else ""
            message = first["msg"].removeprefix("Value error, ")
            return InputError(f"{where} does not go together: {within}{message}.")
        case _:
            expected = first["msg"].replace("Input should", "should")
    return InputError(f"{key} in {where} {expected}, not {first['input']!r}.")


def _unknown_key(path: tuple[str, ...], known: list[str], where: str) -> InputError:
    """Return the error for an unknown key, suggesting the closest of the `known` dotted keys."""
    *section, name = path
    inside = ".".join(section)
    siblings = [key for key in known if key.rpartition(".")[0] == inside]
    leaves = {key: key.rpartition(".")[2] for key in known}
    near = (
        next((key for key, leaf in leaves.items() if leaf == name), None)
        or _nearest(name, {key: leaves[key] for key in siblings})
        or _nearest(name, leaves)
    )
    meant = f"did you mean {near}?" if near else f"there are {', '.join(siblings)}."
    return InputError(f"{where} has an unknown key {'.'.join(path)}; {meant}")


def _keys_of(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Return all keys of `schema` and its sections, dotted."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        for annotation in (field.annotation, *get_args(field.annotation)):  # a section, or null
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                keys += _keys_of(annotation, f"{prefix}{name}.")
    return keys


def _nearest(name: str, leaves: dict[str, str]) -> str | None:
    """Return the key whose last part is closest to `name`."""
    close = get_close_matches(name, leaves.values(), n=1)
    return next((key for key, leaf in leaves.items() if leaf == close[0]), None) if close else None


def _not_yaml(error: Exception, where: str) -> InputError:
    """Return the error for a text that is not YAML."""
    mark: Any = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark else ""
    what = getattr(error, "problem", None) or one_line(error)
    return InputError(f"{where} is not valid YAML{line}: {what}; correct it there.")
