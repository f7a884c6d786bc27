"""Interface of a source of pairs: a list of units, and the rows of any one of them.

A unit is a run of rows of one file and becomes one shard, wherever and whenever it is worked on.
The list depends on the input alone, so it is also what a resumed run compares against.
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
    """Rows `first` to `first + rows` of the Parquet file `file`; `index` numbers the shard it
    becomes.

    `duplicates` are the row numbers in the file whose id has occurred before.
    """

    index: int
    file: str
    first: int
    rows: int
    duplicates: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Pairs as read: SOURCE_COLUMNS and the source's own; `image.bytes` is null for image files.

    `rejects` are the rows that were left out of `table`.
    """

    table: pa.Table
    rejects: list[Reject]

    @property
    def rows_in(self) -> int:
        """Rows that were read, usable or not."""
        return self.table.num_rows + len(self.rejects)


class Source(Protocol):
    """Pairs to be scored. Sources are sent to workers, so they hold names of files, not open
    ones.
    """

    @property
    def name(self) -> str:
        """Names the dataset: `data/<name>/score`."""
        ...

    @property
    def image_root(self) -> str | None:
        """The folder that `image.path` is relative to and may not leave; None if bytes are
        inside.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Fields that distinguish this input from another, for the manifest and for resuming."""
        ...

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """The units, in order. `work` is a folder of the run for what planning has to write
        down.
        """
        ...

    def own_columns(self) -> pa.Schema:
        """The source's own columns beyond the contract's; they pass through. Asked for after
        `plan`.
        """
        ...

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RawBatch]:
        """The rows of `unit` in batches of at most `batch_rows`."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A source of which `plan` has much to read, in parts that any machine may do before it."""

    def parts(self, work: Storage) -> list[int]:
        """The parts that are not done yet."""
        ...

    def prepare(self, work: Storage, part: int) -> None:
        """Do one of them, writing to `work` what `plan` then finds there."""
        ...


def cut_into_units(files: list[tuple[str, int]], shard_rows: int | None) -> list[Unit]:
    """Units over `files` (location, rows) of `shard_rows` rows each, or of a size that suits the
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
    """The Parquet file at `location`, a path or URI; what goes wrong while it is read names it.

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
        # Of a damaged file pyarrow says the same as of a store that does not answer.
        unread = " or cannot be read" if is_remote(location) else ""
        raise InputError(
            f"{location} is not a whole Parquet file{unread}: {one_line(error, 200)}; fetch "
            "or write it again."
        ) from error


def parquet_rows(
    unit: Unit, columns: list[str], batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of `unit` as (row number in the file, batch), reading no row group that it does not
    touch.
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
