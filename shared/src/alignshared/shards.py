"""Writing a shard: a Parquet file with its size and SHA-256 known on closing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic.dataclasses import dataclass

from alignshared.schema import CONTRACT, Count
from alignshared.stores.storage import Storage

IMAGE_ROW_GROUP = 256
"""Rows per row group with images: small enough to read a few rows without the whole shard."""

PLAIN_ROW_GROUP = 1 << 17
"""Rows per row group without images: writers buffer one, and captions may be long."""


@dataclass(frozen=True, slots=True, config=CONTRACT)
class ShardInfo:
    """A finished shard, as the manifest lists it."""

    file: str
    rows: Count
    bytes: Count
    sha256: str


def row_groups(parquet: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """Yield each row group's number, first row and end row (exclusive)."""
    first = 0
    for group in range(parquet.num_row_groups):
        end = first + parquet.metadata.row_group(group).num_rows
        yield group, first, end
        first = end


def groups_of_rows(parquet: pq.ParquetFile, first: int, end: int) -> tuple[list[int], int]:
    """Row groups containing rows `first` to `end`, and the number of leading rows to skip."""
    groups = [
        (group, begin) for group, begin, stop in row_groups(parquet) if begin < end and stop > first
    ]
    return [group for group, _ in groups], first - groups[0][1] if groups else 0


def rows_within(
    batches: Iterable[pa.RecordBatch], skip: int, count: int
) -> Iterator[pa.RecordBatch]:
    """Yield `count` rows of `batches` after the first `skip`, batch by batch."""
    for batch in batches:
        rows = batch.slice(skip, count)
        skip = max(skip - batch.num_rows, 0)
        if rows.num_rows:
            yield rows
            count -= rows.num_rows
        if not count:
            return


class ShardWriter:
    """Writes tables as row groups of one shard."""

    def __init__(self, writer: pq.ParquetWriter, row_group_size: int) -> None:
        self._writer = writer
        self._row_group_size = row_group_size
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Append the rows of `table`."""
        self._pending.append(table)
        self._pending_rows += table.num_rows
        self.rows += table.num_rows
        if self._pending_rows >= self._row_group_size:
            self._flush(whole_groups_only=True)

    def close(self) -> None:
        """Write the remaining rows."""
        self._flush(whole_groups_only=False)

    def _flush(self, *, whole_groups_only: bool) -> None:
        if not self._pending:
            return
        rows = pa.concat_tables(self._pending)
        size = self._row_group_size
        ready = rows.num_rows - rows.num_rows % size if whole_groups_only else rows.num_rows
        if ready:
            self._writer.write_table(rows.slice(0, ready), row_group_size=size)
        rest = rows.slice(ready)
        self._pending = [rest] if rest.num_rows else []
        self._pending_rows = rest.num_rows


class ShardResult:
    """Receives the description of the shard finished by `writing_shard`."""

    info: ShardInfo


@contextmanager
def writing_shard(
    storage: Storage, file: str, schema: pa.Schema
) -> Iterator[tuple[ShardWriter, ShardResult]]:
    """Write the shard `file` atomically; `result.info` is set after the block."""
    result = ShardResult()
    with (
        storage.writing(file) as sink,
        pq.ParquetWriter(sink, schema, **_parquet_options(schema)) as parquet,
    ):
        size = IMAGE_ROW_GROUP if "image" in schema.names else PLAIN_ROW_GROUP
        writer = ShardWriter(parquet, size)
        yield writer, result
        writer.close()
    result.info = ShardInfo(file, writer.rows, sink.bytes_written, sink.sha256)


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    # Encoded images do not compress further, and their statistics would be images; scores and
    # ids are mostly distinct, so a dictionary only costs time, while levels are few.
    empty = pa.BufferOutputStream()
    pq.ParquetWriter(empty, schema).close()
    parquet = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    leaves = [parquet.column(i).path for i in range(len(parquet))]  # such as `image.bytes`
    return {
        "compression": {
            path: "NONE" if path in ("image.bytes", "score") else "ZSTD" for path in leaves
        },
        "use_dictionary": [
            path for path in leaves if path == "level" or path.startswith("conversations.")
        ],
        "write_statistics": [path for path in leaves if path != "image.bytes"],
        "store_schema": True,
    }
