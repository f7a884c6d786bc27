"""Errors in a recipe as one sentence: the key, the place and the expected value."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from alignshared import InputError
from alignshared.errors import one_line


def problem_of(error: ValidationError, schema: type[BaseModel], where: str) -> InputError:
    """Return the first problem of `error`, from validating `where` against `schema`."""
    errors = error.errors(include_url=False)
    # If one key is unknown and another missing, the first is a misspelling of the second.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = tuple(str(part) for part in first["loc"] if part != "[key]")
    key = ".".join(path)
    match first["type"]:
        case "extra_forbidden":
            return unknown_key(path, keys_of(schema), where)
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


def unknown_key(path: tuple[str, ...], known: list[str], where: str) -> InputError:
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
    hint = f"did you mean {near}?" if near else f"there are {', '.join(siblings)}."
    return InputError(f"{where} has an unknown key {'.'.join(path)}; {hint}")


def hint(name: str, known: Collection[str]) -> str:
    """Return the closest of `known` to `name` as a question, or all of `known`."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."


def keys_of(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Return all keys of `schema` and its sections, dotted."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        for annotation in (field.annotation, *get_args(field.annotation)):  # a section, or null
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                keys += keys_of(annotation, f"{prefix}{name}.")
    return keys


def _nearest(name: str, leaves: dict[str, str]) -> str | None:
    """Return the key whose last part is closest to `name`."""
    close = get_close_matches(name, leaves.values(), n=1)
    return next((key for key, leaf in leaves.items() if leaf == close[0]), None) if close else None


def not_yaml(error: Exception, where: str) -> InputError:
    """Return the error for a text that is not YAML."""
    mark: Any = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark else ""
    what = getattr(error, "problem", None) or one_line(error)
    return InputError(f"{where} is not valid YAML{line}: {what}; correct it there.")
