"""Interface of a source of pairs: a list of units and their rows.

A unit is a range of rows of one file and becomes one shard, wherever it is processed. The list
depends only on the input, so a resumed run can be compared against it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from alignshared import InputError, Reject, Storage
from alignshared.errors import one_line
from alignshared.shards import groups_of_rows
from alignshared.stores.filesystems import is_remote

MIN_SHARD_ROWS = 256
MAX_SHARD_ROWS = 1024
_UNITS_WANTED = 64


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows `first` to `first + rows` of the Parquet file `file`; `index` is the shard's number.

    `duplicates` are row numbers in the file whose id occurred before.
    """

    index: int
    file: str
    first: int
    rows: int
    duplicates: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Pairs as read: SOURCE_COLUMNS and the source's own; `image.bytes` is null for image files.

    `rejects` are rows left out of `table`.
    """

    table: pa.Table
    rejects: list[Reject]

    @property
    def rows_in(self) -> int:
        """Number of rows read, usable or not."""
        return self.table.num_rows + len(self.rejects)


class Source(Protocol):
    """A source of pairs. Sources are sent to workers, so they hold file names instead of open
    files.
    """

    @property
    def name(self) -> str:
        """Name of the dataset: `data/<name>/score`."""
        ...

    @property
    def image_root(self) -> str | None:
        """Folder that `image.path` is relative to and confined to; None if images are inline."""
        ...

    def identity(self) -> dict[str, Any]:
        """Fields that identify this input, for the manifest and for resuming."""
        ...

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Return the units in order. Planning may write to `work`, a folder of the run."""
        ...

    def own_columns(self) -> pa.Schema:
        """Pass-through columns beyond the contract's; available after `plan`."""
        ...

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RawBatch]:
        """Yield the rows of `unit` in batches of at most `batch_rows`."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A source whose planning is split into parts that any machine can do first."""

    def parts(self, work: Storage) -> list[int]:
        """Unfinished parts."""
        ...

    def prepare(self, work: Storage, part: int) -> None:
        """Prepare one part, writing its results to `work` for `plan`."""
        ...


def cut_into_units(files: list[tuple[str, int]], shard_rows: int | None) -> list[Unit]:
    """Cut `files` (location, rows) into units of `shard_rows` rows, or of a size chosen from the
    total.
    """
    total = sum(rows for _, rows in files)
    size = shard_rows or min(max(-(-total // _UNITS_WANTED), MIN_SHARD_ROWS), MAX_SHARD_ROWS)
    spans = [
        (file, first, min(size, rows - first))
        for file, rows in files
        for first in range(0, rows, size)
    ]
    return [Unit(index, file, first, rows) for index, (file, first, rows) in enumerate(spans)]


@contextmanager
def reading_parquet(location: str) -> Iterator[pq.ParquetFile]:
    """Open the Parquet file at `location`, a path or URI; read errors in the block name it.

    Raises:
        InputError: it is not Parquet, or damaged.
    """
    folder, _, name = location.rpartition("/")
    try:
        with (
            Storage(folder).open(name) as stream,
            pq.ParquetFile(stream, page_checksum_verification=True) as parquet,
        ):
            yield parquet
    except (pa.ArrowException, OSError) as error:
        # pyarrow raises the same for a damaged file and for an unreachable store.
        unread = " or cannot be read" if is_remote(location) else ""
        raise InputError(
            f"{location} is not a whole Parquet file{unread}: {one_line(error, 200)}; fetch "
            "or write it again."
        ) from error


def parquet_rows(
    unit: Unit, columns: list[str], batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the rows of `unit` as (row number in the file, batch), reading only the row groups
    needed.
    """
    with reading_parquet(unit.file) as parquet:
        groups, skip = groups_of_rows(parquet, unit.first, unit.first + unit.rows)
        left, at = unit.rows, unit.first
        for batch in parquet.iter_batches(batch_rows, row_groups=groups, columns=columns):
            rows = batch.slice(skip, left)
            skip = max(skip - batch.num_rows, 0)
            if rows.num_rows:
                yield at, rows
                at += rows.num_rows
                left -= rows.num_rows
            if not left:
                return
