"""Index of an input: a Parquet file written during planning and read by workers."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignshared import Storage
from alignshared.shards import writing_shard

_ROWS_AT_ONCE = 4096
_TEXT_AT_ONCE = 1 << 26


def write_index(
    work: Storage, file: str, schema: pa.Schema, rows: Iterable[dict[str, Any]]
) -> None:
    """Write `rows` of `schema` as the index `file`, a few thousand at a time."""
    with writing_shard(work, file, schema) as (writer, _):
        held: list[dict[str, Any]] = []
        text = 0
        for row in rows:
            held.append(row)
            text += _characters(row)
            if len(held) == _ROWS_AT_ONCE or text > _TEXT_AT_ONCE:
                writer.write(pa.Table.from_pylist(held, schema=schema))
                held, text = [], 0
        if held:
            writer.write(pa.Table.from_pylist(held, schema=schema))


def index_rows(work: Storage, file: str) -> int:
    """Number of rows in the index `file`."""
    with work.open(file) as stream:
        return pq.read_metadata(stream).num_rows


def _characters(row: dict[str, Any]) -> int:
    turns = row.get("conversations") or ()
    spoken = sum(len(turn["value"] or "") for turn in turns)
    return spoken + len(row.get("caption") or "")
