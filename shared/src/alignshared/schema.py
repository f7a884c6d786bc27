"""The columns of a pair dataset and their Arrow types.

Stages add columns and never rename them. `image` follows the Hugging Face Image convention, and the
schema carries the `huggingface` metadata, so that `datasets` and its viewers show images without
configuration.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import pyarrow as pa
from pydantic import ConfigDict, Field

from alignshared.errors import ContractError

CONTRACT = ConfigDict(extra="forbid", strict=True)
"""Pydantic configuration of the contract's records: no extra fields, strict types."""

Count = Annotated[int, Field(ge=0)]

SCHEMA_VERSION = 1

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CONVERSATIONS_TYPE = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))

SOURCE_COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "image": IMAGE_TYPE,
    "caption": pa.string(),
    "conversations": CONVERSATIONS_TYPE,
}
"""Columns from every source; `conversations` is null for plain pairs."""

SCORE_COLUMNS: dict[str, pa.DataType] = {
    "width": pa.int32(),
    "height": pa.int32(),
    "score": pa.float32(),
    "caption_truncated": pa.bool_(),
}
"""Columns added by scoring: size in pixels as displayed, CLIP cosine in [-1, 1], truncation."""

EMBEDDING_COLUMNS = ("image_embedding", "text_embedding")
SCORE_COLUMN = "score"
LEVEL_COLUMN = "level"
LEVEL_TYPE = pa.int8()

STAGE_COLUMNS = (*SCORE_COLUMNS, *EMBEDDING_COLUMNS, LEVEL_COLUMN)
"""Column names reserved for stages; sources may not use them for columns of their own."""


def score_column(model: str) -> str:
    """Name of the score column of `model` in a dataset scored by several models."""
    return f"score_{model}"


def embedding_type(dim: int) -> pa.DataType:
    """Arrow type of one CLIP embedding of `dim` values: unit length, float16."""
    return pa.list_(pa.float16(), dim)


def scored_schema(
    extra: pa.Schema | None = None, embedding_dim: int | None = None, models: Iterable[str] = ()
) -> pa.Schema:
    """Schema of a scored dataset: source and score columns, a score column for each of `models`,
    embeddings if `embedding_dim`, then `extra`.

    `extra` holds the source's own columns (a url, a language tag); they pass through all stages.
    """
    fields = [pa.field(name, kind) for name, kind in (SOURCE_COLUMNS | SCORE_COLUMNS).items()]
    fields += [pa.field(score_column(model), SCORE_COLUMNS["score"]) for model in models]
    if embedding_dim is not None:
        fields += [pa.field(name, embedding_type(embedding_dim)) for name in EMBEDDING_COLUMNS]
    fields += [field.remove_metadata() for field in extra or ()]
    return with_features(pa.schema(fields))


def ingested_schema() -> pa.Schema:
    """Schema of an ingested dataset: source columns and image sizes, no scores.

    `image`, `width` and `height` are null for text-only records.
    """
    sizes = {name: SCORE_COLUMNS[name] for name in ("width", "height")}
    return with_features(pa.schema((SOURCE_COLUMNS | sizes).items()))


def with_level(schema: pa.Schema) -> pa.Schema:
    """Return the schema with `level` as its last column, replacing an existing one."""
    fields = [field for field in schema if field.name != LEVEL_COLUMN]
    return with_features(pa.schema([*fields, pa.field(LEVEL_COLUMN, LEVEL_TYPE)]))


def with_features(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with the metadata from which Hugging Face `datasets` restores features."""
    features = {
        field.name: {"_type": "Image"} if field.name == "image" else _feature(field.type)
        for field in schema
    }
    info = json.dumps({"info": {"features": features}})
    return schema.with_metadata({"huggingface": info})


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return {child.name: _feature(child.type) for child in kind}
    if pa.types.is_fixed_size_list(kind):
        inner = _feature(kind.value_type)
        return {"feature": inner, "length": kind.list_size, "_type": "Sequence"}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": type_name(kind), "_type": "Value"}


def type_name(kind: pa.DataType) -> str:
    """Hugging Face `datasets` name of a plain Arrow type."""
    return _DTYPE_NAMES.get(str(kind), str(kind))


# `datasets` names these types in its own way.
_DTYPE_NAMES = {
    "float": "float32",
    "double": "float64",
    "halffloat": "float16",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}


def require_columns(schema: pa.Schema, names: Iterable[str], where: str) -> None:
    """Raise ContractError unless `schema` has all columns `names` with their contract types."""
    known = SOURCE_COLUMNS | SCORE_COLUMNS | {LEVEL_COLUMN: LEVEL_TYPE}
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise ContractError(
            f"{where} has no column {', '.join(missing)} (it has {', '.join(schema.names)}); "
            "run the stage that adds it."
        )
    for name in names:
        if name in known and schema.field(name).type != known[name]:
            raise ContractError(
                f"column {name} of {where} has type {schema.field(name).type}, "
                f"the contract says {known[name]}; write the dataset again with aligncurate."
            )
