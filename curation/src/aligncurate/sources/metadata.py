"""Scalar JSON fields beside images, as pass-through columns."""

import codecs
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from alignshared import Reason
from alignshared.schema import SOURCE_COLUMNS, STAGE_COLUMNS

MAX_CHARACTERS = 1 << 20
"""Maximum characters of a caption or of one conversation turn."""

INVALID = "\U0010ffff"
"""Stand-in for bytes that are not UTF-8: a noncharacter, absent from real text. U+FFFD occurs in
valid text that was damaged earlier.
"""

MARK_INVALID = "alignstack-mark-invalid"
"""Name of the codec error handler that inserts INVALID."""


def _mark_invalid(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return INVALID, error.end


codecs.register_error(MARK_INVALID, _mark_invalid)


def as_text(value: Any) -> Any:
    """Return `value`, decoded if bytes; invalid UTF-8 becomes INVALID."""
    return value.decode("utf-8", errors=MARK_INVALID) if isinstance(value, bytes) else value


def writable(text: str) -> str:
    """Return `text` with invalid UTF-8 replaced by U+FFFD."""
    return text.replace(INVALID, "\ufffd").encode(errors="replace").decode()


def caption_problem(caption: Any) -> tuple[Reason, str] | None:
    """Return the reason `caption` cannot be scored; None if it can."""
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
    """Whether `text` was valid UTF-8 and can be written."""
    if INVALID in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a JSON escape
        return False
    return True


MAX_TEXT_BYTES = 1 << 20
"""Maximum size of a caption or metadata file: 1 MiB."""

MAX_COLUMNS = 256
"""Maximum number of columns; the most frequent fields are kept."""

Kinds = dict[str, Counter[str]]
"""Counts of each field's kinds: null, bool, int, float, str, nested."""

_TYPES = {
    frozenset[str](): pa.string(),
    frozenset({"bool"}): pa.bool_(),
    frozenset({"int"}): pa.int64(),
    frozenset({"float"}): pa.float64(),
    frozenset({"int", "float"}): pa.float64(),
}
_TAKEN = frozenset((*SOURCE_COLUMNS, *STAGE_COLUMNS))


def parsed_metadata(data: bytes) -> dict[str, Any]:
    """Parse the fields of a JSON object.

    Raises:
        ValueError: the text is not JSON, not an object, or nested too deeply.
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
    """Sum of several inputs' counts, names in order of appearance."""
    total: Kinds = {}
    for part in parts:
        for name, counts in part.items():
            total.setdefault(name, Counter()).update(counts)
    return total


def own_columns(kinds: Kinds) -> pa.Schema:
    """Return a column for each field with scalar values, of a type that holds them all.

    Fields named like contract columns (`width`, `caption`) are left out. Fields of mixed kinds
    become text, with non-text values as JSON.
    """
    fit = {
        name: counts
        for name, counts in kinds.items()
        if name not in _TAKEN and is_valid_text(name) and set(counts) != {"nested"}
    }
    kept = sorted(fit, key=lambda name: -fit[name].total())[:MAX_COLUMNS]
    return pa.schema(
        [
            (name, _TYPES.get(frozenset(counts) - {"null"}, pa.string()))
            for name, counts in fit.items()
            if name in kept
        ]
    )


def own_value(value: Any, kind: pa.DataType) -> Any:
    """Convert the value of a field to what a column of type `kind`, from `own_columns`, holds."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return writable(value if isinstance(value, str) else json.dumps(value))
    return float(value) if pa.types.is_floating(kind) else value
