"""Columns of a Parquet file that make up a pair, and their values in the contract's types."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aligncurate.sources.metadata import as_text, writable
from alignshared import InputError
from alignshared.schema import CONVERSATIONS_TYPE, SOURCE_COLUMNS, STAGE_COLUMNS

EXPORT_MARK = b"aligncurate"
"""Key of the schema's metadata in Parquet that `export` wrote, with columns of earlier stages."""

_IMAGE_NAMES = ("image", "image_path", "path")
_CAPTION_NAMES = ("caption", "text", "TEXT")


@dataclass(frozen=True, slots=True)
class Columns:
    """Column name of each part of a pair; `own` are the remaining columns, which pass through."""

    id: str | None
    image: str
    caption: str
    conversations: str | None
    own: pa.Schema

    def names(self) -> list[str]:
        """All columns to read."""
        parts = [self.id, self.image, self.caption, self.conversations]
        return [name for name in parts if name is not None] + self.own.names


def find_columns(schema: pa.Schema, where: str, *, is_dataset: bool) -> Columns:
    """Find the parts of a pair in `schema`; columns added by earlier stages are left out.

    Raises:
        InputError: a part is missing or of the wrong type, or a name is taken.
    """
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise InputError(f"{where} has two columns {twice[0]}; rename one of them.")
    image = _first_of(_IMAGE_NAMES, schema, where, "images or paths")
    caption = _first_of(_CAPTION_NAMES, schema, where, "captions")
    parts = {"id", image, caption, "conversations"}
    own = [field for field in schema if field.name not in parts]
    taken = [field.name for field in own if field.name in (*STAGE_COLUMNS, *SOURCE_COLUMNS)]
    if taken and not is_dataset:
        raise InputError(
            f"column {taken[0]} of {where} has a name that scoring itself writes; rename it."
        )
    for name, may_be, expected in (
        (image, _may_be_image, "bytes or paths"),
        ("id", _may_be_id, "text or numbers"),
        ("conversations", _may_be_conversations, CONVERSATIONS_TYPE),
    ):
        if name in schema.names and not may_be(schema.field(name).type):
            raise InputError(
                f"column {name} of {where} is {schema.field(name).type}, where {expected} are "
                "needed; convert or rename it."
            )
    return Columns(
        id="id" if "id" in schema.names else None,
        image=image,
        caption=caption,
        conversations="conversations" if "conversations" in schema.names else None,
        own=pa.schema([f.remove_metadata() for f in own if f.name not in taken]),
    )


def require_same(columns: Columns, schema: pa.Schema, where: str) -> None:
    """Raise InputError unless `schema` has `columns`, with unchanged types of own columns."""
    missing = [name for name in columns.names() if name not in schema.names]
    if missing:
        raise InputError(
            f"{where} has no column {missing[0]}, which the files before it have; name files of "
            "one kind."
        )
    for field in columns.own:
        if schema.field(field.name).type != field.type:
            raise InputError(
                f"column {field.name} of {where} is {schema.field(field.name).type}, in the files "
                f"before it {field.type}; name files of one kind."
            )


def as_images(column: pa.Array) -> pa.StructArray:
    """Convert images (such structs, bytes or paths) to struct<bytes: binary, path: binary>."""
    column = _plain(column)
    nulls = pa.nulls(len(column))
    if pa.types.is_struct(column.type):
        names = [field.name for field in column.type]
        parts = dict(zip(names, column.flatten(), strict=True))
        fields = [_plain(parts.get(name, nulls)) for name in ("bytes", "path")]
    elif _is_bytes(column.type):
        fields = [column, nulls]
    else:
        fields = [nulls, column]
    return pa.StructArray.from_arrays(
        [field.cast(pa.binary()) for field in fields], names=["bytes", "path"]
    )


def raw_text(column: pa.Array) -> list[Any]:
    """Return text columns as bytes, since Arrow does not guarantee valid UTF-8."""
    column = _plain(column)
    return (column.cast(pa.binary()) if _is_text(column.type) else column).to_pylist()


def as_conversations(column: pa.Array) -> pa.Array:
    """Convert conversations to the contract's type with valid UTF-8."""
    try:
        turns = column.cast(CONVERSATIONS_TYPE)
        turns.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(_as_bytes(column.type)).to_pylist()
        return pa.array([_decoded(value) for value in raw], CONVERSATIONS_TYPE)
    return turns


def as_own(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert a pass-through column to type `kind` with valid UTF-8."""
    if not _is_text(kind):
        return column.cast(kind)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array([_decoded(value) for value in raw_text(column)], kind)
    return column.cast(kind)


def _first_of(names: tuple[str, ...], schema: pa.Schema, where: str, what: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise InputError(
        f"{where} has no column of {what}: it has {', '.join(schema.names)}; "
        f"name one of them {names[0]}."
    )


def _may_be_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        parts = [field.type for field in kind if field.name in ("bytes", "path")]
        return bool(parts) and all(map(_is_raw, parts))
    return _is_raw(kind)


def _may_be_id(kind: pa.DataType) -> bool:
    return _is_raw(kind) or pa.types.is_integer(_value_type(kind))


def _is_raw(kind: pa.DataType) -> bool:
    """Whether values are text or bytes, or all null."""
    kind = _value_type(kind)
    return _is_text(kind) or _is_bytes(kind) or pa.types.is_null(kind)


def _may_be_conversations(kind: pa.DataType) -> bool:
    try:
        pa.array([], kind).cast(CONVERSATIONS_TYPE)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return False
    return True


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return `kind` with all text types replaced by bytes."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_bytes(field.type)) for field in kind])
    return pa.binary() if _is_text(kind) else kind


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    return writable(as_text(value)) if isinstance(value, bytes) else value
