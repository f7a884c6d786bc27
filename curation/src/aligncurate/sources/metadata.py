"""Scalar fields of JSON objects beside images, as columns that pass through."""

import codecs
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from alignshared import Reason
from alignshared.schema import SOURCE_COLUMNS, STAGE_COLUMNS

MAX_CHARACTERS = 1 << 20
"""Limit for a caption or one turn of a conversation; no person wrote more."""

INVALID = "\U0010ffff"
"""Stand-in for bytes that are not UTF-8: a noncharacter, which no text has. U+FFFD would not do:
texts that lost a letter long ago have it, and are valid.
"""

MARK_INVALID = "alignstack-mark-invalid"
"""Name of the codec error handler that puts INVALID there."""


def _mark_invalid(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return INVALID, error.end


codecs.register_error(MARK_INVALID, _mark_invalid)


def as_text(value: Any) -> Any:
    """`value`, decoded if it is bytes; bytes that are not UTF-8 become INVALID."""
    return value.decode("utf-8", errors=MARK_INVALID) if isinstance(value, bytes) else value


def writable(text: str) -> str:
    """`text` with what is not valid UTF-8 in it as U+FFFD."""
    return text.replace(INVALID, "\ufffd").encode(errors="replace").decode()


def caption_problem(caption: Any) -> tuple[Reason, str] | None:
    """Return the reason why `caption` cannot be scored, or None if it can."""
    if caption is None:
        return Reason.NO_CAPTION, "there is no caption"
    if not isinstance(caption, str):
        return Reason.NO_CAPTION, f"the caption is {type(caption).__name__}, not text"
    if not caption.strip():
        return Reason.EMPTY_CAPTION, "the caption is empty"
    if len(caption) > MAX_CHARACTERS:
        return Reason.MALFORMED_RECORD, f"the caption has {len(caption):,} characters"
    if not is_valid_text(caption):
        return Reason.INVALID_UTF8, f"the caption is not valid UTF-8: {writable(caption[:80])}"
    return None


def is_valid_text(text: str) -> bool:
    """Whether `text` was valid UTF-8 and can be written as such."""
    if INVALID in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a JSON escape
        return False
    return True


MAX_TEXT_BYTES = 1 << 20
"""1 MiB: more than any caption or its metadata has."""

MAX_COLUMNS = 256
"""Limit of columns; of more fields, those that most samples have become columns."""

Kinds = dict[str, Counter[str]]
"""Counts of each field's kinds: null, bool, int, float, str, or nested."""

_TYPES = {
    frozenset[str](): pa.string(),
    frozenset({"bool"}): pa.bool_(),
    frozenset({"int"}): pa.int64(),
    frozenset({"float"}): pa.float64(),
    frozenset({"int", "float"}): pa.float64(),
}
_TAKEN = frozenset((*SOURCE_COLUMNS, *STAGE_COLUMNS))


def parsed_metadata(data: bytes) -> dict[str, Any]:
    """The fields of a JSON object.

    Raises:
        ValueError: it is not JSON, or no object, or nested beyond reason.
    """
    try:
        fields = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("it is no object")
    return fields


def kind_of(value: Any) -> str:
    """Kind of a JSON value, as `Kinds` counts it."""
    if value is None:
        return "null"
    if isinstance(value, bool | str):
        return type(value).__name__
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "str"
    return "float" if isinstance(value, float) else "nested"


def added_kinds(parts: Iterable[Kinds]) -> Kinds:
    """The counts of several inputs together, names in the order in which they come."""
    total: Kinds = {}
    for part in parts:
        for name, counts in part.items():
            total.setdefault(name, Counter()).update(counts)
    return total


def own_columns(kinds: Kinds) -> pa.Schema:
    """A column for each field that is a scalar anywhere, of a type that holds all its values.

    Fields with a name that the contract uses itself (`width`, `caption`) are left out. A field of
    several kinds becomes text, values that are no text as JSON.
    """
    fit = {
        name: counts
        for name, counts in kinds.items()
        if name not in _TAKEN and is_valid_text(name) and set(counts) != {"nested"}
    }
    order = {name: place for place, name in enumerate(fit)}
    most = sorted(fit, key=lambda name: (-fit[name].total(), order[name]))[:MAX_COLUMNS]
    return pa.schema([(n, _type(fit[n])) for n in sorted(most, key=lambda name: order[name])])


def column_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values of one field as a column of the type that `own_columns` gave it."""
    if pa.types.is_string(kind):
        return pa.array([_as_text(value) for value in values], kind)
    if pa.types.is_floating(kind):
        return pa.array([None if v is None else float(v) for v in values], kind)
    return pa.array(values, kind)


def _type(counts: Counter[str]) -> pa.DataType:
    return _TYPES.get(frozenset(counts) - {"null"}, pa.string())


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return writable(value if isinstance(value, str) else json.dumps(value))
