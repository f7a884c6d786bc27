"""What is wrong with a recipe, in one sentence that names the key, the place and what is wanted."""

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from alignshared import InputError


def problem_of(error: ValidationError, schema: type[BaseModel], where: str) -> InputError:
    """The first problem of `error`, met in `where` when a value was held against `schema`."""
    errors = error.errors(include_url=False)
    # Where a key is unknown and another lacks, one was meant to be the other.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = tuple(str(part) for part in first["loc"])
    key = ".".join(path)
    match first["type"]:
        case "extra_forbidden":
            return unknown_key(path, keys_of(schema), where)
        case "missing":
            return InputError(f"{where} lacks the key {key}; add it.")
        case "model_type":
            wanted = "should be a section with keys of its own"
        case "value_error":
            within = f"{key}." if key else ""
            said = first["msg"].removeprefix("Value error, ")
            return InputError(f"{where} does not go together: {within}{said}.")
        case _:
            wanted = first["msg"].replace("Input should", "should")
    return InputError(f"{key} in {where} {wanted}, not {first['input']!r}.")


def unknown_key(path: tuple[str, ...], known: list[str], where: str) -> InputError:
    """That there is no key `path`, and which of the `known` ones, dotted, may be meant."""
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


def keys_of(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of `schema` and its sections, dotted."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        for annotation in (field.annotation, *get_args(field.annotation)):  # a section, or null
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                keys += keys_of(annotation, f"{prefix}{name}.")
    return keys


def _nearest(name: str, leaves: dict[str, str]) -> str | None:
    """The key whose last part looks most like `name`."""
    close = get_close_matches(name, leaves.values(), n=1)
    return next((key for key, leaf in leaves.items() if leaf == close[0]), None) if close else None


def not_yaml(error: Exception, where: str) -> InputError:
    """That `where` holds something else than YAML."""
    mark: Any = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark else ""
    what = getattr(error, "problem", None) or " ".join(str(error).split())
    return InputError(f"{where} is not valid YAML{line}: {what}; correct it there.")
