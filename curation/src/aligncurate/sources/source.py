"""Interface of a source of pairs, and what sources share: units, indexes, rows, repeated ids.

A unit is a range of rows of one file and becomes one shard, wherever it is processed. The list of
units depends only on the input, so a resumed run can be compared against it. An index is a Parquet
file with a row for each record of an input, written during planning and read by workers.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.core.idhash import RepeatFinder, hash_ids, rows_among
from aligncurate.sources.columns import raw_text
from aligncurate.sources.listing import split_location
from aligncurate.sources.metadata import as_text
from alignshared import InputError, Reason, Reject, Storage
from alignshared.errors import one_line
from alignshared.schema import SOURCE_COLUMNS
from alignshared.shards import groups_of_rows, rows_within, writing_shard
from alignshared.stores.filesystems import is_remote

MIN_SHARD_ROWS = 256
MAX_SHARD_ROWS = 1024
_UNITS_WANTED = 64

_INDEX_FILE = "index.parquet"
_ROWS_AT_ONCE = 4096
_TEXT_AT_ONCE = 1 << 26


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
    """A source of pairs. It is sent to workers, so it holds file names instead of open files."""

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
    """Cut `files` (location, rows) into units of `shard_rows` rows, by default to fit the total."""
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
    storage, name = split_location(location)
    try:
        with (
            storage.open(name) as stream,
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
    """Yield row number and rows of each batch of `unit`, reading only the row groups needed."""
    with reading_parquet(unit.file) as parquet:
        groups, skip = groups_of_rows(parquet, unit.first, unit.first + unit.rows)
        batches = parquet.iter_batches(batch_rows, row_groups=groups, columns=columns)
        at = unit.first
        for rows in rows_within(batches, skip, unit.rows):
            yield at, rows
            at += rows.num_rows


def index_units(
    work: Storage, schema: pa.Schema, rows: Iterable[dict[str, Any]], shard_rows: int | None
) -> list[Unit]:
    """Write the index of an input to `work`, unless an earlier run did, and cut it into units."""
    if not work.exists(_INDEX_FILE):
        write_index(work, _INDEX_FILE, schema, rows)
    with work.open(_INDEX_FILE) as stream:
        count = pq.read_metadata(stream).num_rows
    return cut_into_units([(f"{work.location}/{_INDEX_FILE}", count)], shard_rows)


def write_index(
    work: Storage, file: str, schema: pa.Schema, rows: Iterable[dict[str, Any]]
) -> None:
    """Write `rows` of `schema` as the index `file`, a few thousand at a time."""
    with writing_shard(work, file, schema) as (writer, _):
        held: list[dict[str, Any]] = []
        text = 0
        for row in rows:
            held.append(row)
            turns = row.get("conversations") or ()
            text += len(row.get("caption") or "") + sum(len(turn["value"] or "") for turn in turns)
            if len(held) == _ROWS_AT_ONCE or text > _TEXT_AT_ONCE:
                writer.write(pa.Table.from_pylist(held, schema=schema))
                held, text = [], 0
        writer.write(pa.Table.from_pylist(held, schema=schema))


def reject_of(row: dict[str, Any]) -> Reject:
    """Return the reject that a `row` with a reason in an index is."""
    return Reject(row["id"], row["path"], Reason(row["reason"]), row["detail"])


def sorted_batch(found: list[dict[str, Any] | Reject], own: pa.Schema) -> RawBatch:
    """Return the pairs in `found`, rows of SOURCE_COLUMNS and `own`, apart from the rejects."""
    schema = pa.schema([*SOURCE_COLUMNS.items(), *own])
    pairs = [row for row in found if not isinstance(row, Reject)]
    rejects = [row for row in found if isinstance(row, Reject)]
    return RawBatch(pa.Table.from_pylist(pairs, schema=schema), rejects)


def repeated_rows(ids: Iterable[Sequence[str | None]]) -> Iterator[int]:
    """Row numbers, ascending, whose id occurred in an earlier row; null ids never count.

    `ids` is read twice and must be re-iterable. Only repeated ids are held in memory: a 64-bit hash
    finds candidates, which are then compared in full.
    """
    with closing(RepeatFinder()) as finder:
        for chunk in ids:
            finder.add(_hashes([value for value in chunk if value is not None]))
        suspects = finder.repeated(np.iinfo(np.int64).max)
    if not len(suspects):
        return
    seen: set[str] = set()
    first = 0
    for chunk in ids:
        for row in rows_among(suspects, _hashes([value or "" for value in chunk])).tolist():
            value = chunk[row]
            if value is None:
                continue
            if value in seen:
                yield first + row
            seen.add(value)
        first += len(chunk)


def _hashes(values: list[str]) -> npt.NDArray[np.uint64]:
    # Ids that are invalid text are rejected later and must not fail here.
    return hash_ids(pa.array([v.encode("utf-8", "surrogatepass") for v in values], pa.binary()))


class _IdColumn:
    """Id column of all files, chunk by chunk; re-iterable."""

    def __init__(self, files: list[str], column: str) -> None:
        self._files = files
        self._column = column

    def __iter__(self) -> Iterator[list[str | None]]:
        for file in self._files:
            with reading_parquet(file) as parquet:
                for batch in parquet.iter_batches(columns=[self._column]):
                    yield ids_of(batch.column(0))


def ids_of(column: pa.Array) -> list[str | None]:
    """Return ids as text; None where null."""
    texts = [as_text(value) for value in raw_text(column)]
    return [None if text is None or text == "" else str(text) for text in texts]


def marked_duplicates(units: list[Unit], sizes: list[tuple[str, int]], column: str) -> list[Unit]:
    """Return `units` over files of `sizes` (location, rows) with rows of ids met before marked."""
    begin_of_file: dict[str, int] = {}
    total = 0
    for file, rows in sizes:
        begin_of_file[file] = total
        total += rows
    repeated = list(repeated_rows(_IdColumn(list(begin_of_file), column)))
    if not repeated:
        return units
    marked: list[Unit] = []
    for unit in units:
        begin = begin_of_file[unit.file]
        low, high = begin + unit.first, begin + unit.first + unit.rows
        inside = repeated[bisect_left(repeated, low) : bisect_left(repeated, high)]
        marked.append(replace(unit, duplicates=tuple(row - begin for row in inside)))
    return marked
