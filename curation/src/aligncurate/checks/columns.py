"""Columns of the shards: the contract's, with its types, the same in every shard."""

from collections.abc import Iterator

import pyarrow as pa

from aligncurate.checks.problems import Kind, Problem, written_wrongly
from aligncurate.output.shards import is_number
from alignshared import Manifest
from alignshared.schema import (
    EMBEDDING_COLUMNS,
    LEVEL_COLUMN,
    LEVEL_TYPE,
    SCORE_COLUMN,
    SCORE_COLUMNS,
    SOURCE_COLUMNS,
    score_column,
)

_KNOWN = SOURCE_COLUMNS | SCORE_COLUMNS | {LEVEL_COLUMN: LEVEL_TYPE}

_REQUIRED_OF_STAGE = {
    "ingest": tuple(SOURCE_COLUMNS),
    "score": (*SOURCE_COLUMNS, *SCORE_COLUMNS),
    "bucket": ("id", LEVEL_COLUMN),
}


def check_columns(schema: pa.Schema, manifest: Manifest) -> list[Problem]:
    """Problems where `schema`, of the first shard, differs from the contract."""
    required = set(_REQUIRED_OF_STAGE.get(manifest.stage, ("id",)))
    if manifest.edges is not None:
        required.add(LEVEL_COLUMN)
    by = manifest.by or SCORE_COLUMN
    if manifest.stage == "bucket":
        required.add(by)
    faults = [
        f"the shards have no column {name}, which stage {manifest.stage} writes"
        for name in _KNOWN | {by: None}
        if name in required and name not in schema.names
    ]
    if manifest.by and by in schema.names and not is_number(schema.field(by).type):
        faults.append(f"column {by}, which the levels part, has type {schema.field(by).type}")
    faults += [
        f"the shards have no column {score_column(name)} of float32, though the manifest names "
        f"the model {name}"
        for name in manifest.models or ()
        if not (
            score_column(name) in schema.names
            and schema.field(score_column(name)).type == SCORE_COLUMNS["score"]
        )
    ]
    faults += [
        f"the shards have two columns {name}"
        for name in sorted({name for name in schema.names if schema.names.count(name) > 1})
    ]
    faults += [
        f"column {field.name} has type {field.type} and the contract says {expected}"
        for field, expected in _mistyped(schema)
    ]
    return [written_wrongly(Kind.COLUMNS, fault) for fault in faults]


def _mistyped(schema: pa.Schema) -> Iterator[tuple[pa.Field, object]]:
    """Fields whose types differ from the contract's, with the expected types."""
    for field in schema:
        kind = field.type
        is_embedding = pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type)
        if field.name in EMBEDDING_COLUMNS and not is_embedding:
            yield field, "fixed_size_list<float16>"
        elif field.type != _KNOWN.get(field.name, field.type):
            yield field, _KNOWN[field.name]


def check_same_columns(schema: pa.Schema, first: pa.Schema, file: str) -> Problem | None:
    """Problem if the columns of `file` differ from the first shard's."""
    if schema.equals(first):
        return None
    if schema.names != first.names:
        only_here = [name for name in schema.names if name not in first.names]
        only_there = [name for name in first.names if name not in schema.names]
        parts = [f"lacks {', '.join(only_there)}"] if only_there else []
        parts += [f"adds {', '.join(only_here)}"] if only_here else []
        how = " and ".join(parts) or "has them in another order"
    else:
        differing = [a.name for a, b in zip(schema, first, strict=True) if not a.equals(b)]
        how = f"has another type in {', '.join(differing)}"
    return written_wrongly(
        Kind.COLUMNS, f"the columns of {file} are not those of the first shard: it {how}"
    )


def usable(schema: pa.Schema, name: str) -> bool:
    """Whether `schema` has the column `name`, once and with the contract's type, or of numbers."""
    if schema.names.count(name) != 1:
        return False
    kind = schema.field(name).type
    return kind == _KNOWN[name] if name in _KNOWN else is_number(kind)
