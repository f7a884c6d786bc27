"""Repeated ids."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.idhash import RepeatFinder, hash_ids, rows_among
from aligncurate.sources.columns import raw_text
from aligncurate.sources.metadata import as_text
from aligncurate.sources.source import Unit, reading_parquet


def repeated_rows(ids: Iterable[Sequence[str | None]]) -> Iterator[int]:
    """Row numbers, ascending, whose id occurred in an earlier row; null ids never count.

    `ids` is read twice and must be re-iterable. Only repeated ids are held in memory: a 64-bit hash
    finds candidates, which are then compared in full.
    """
    with RepeatFinder() as finder:
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
    """Return `units` over files of `sizes` (location, rows), knowing their rows whose id in
    `column` occurred before.
    """
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
