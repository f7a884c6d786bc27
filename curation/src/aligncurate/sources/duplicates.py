"""Ids that occur more than once."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from aligncurate.sources.captions import as_text
from aligncurate.sources.columns import raw_text
from aligncurate.sources.source import Unit, reading_parquet


def repeated_rows(ids: Iterable[Sequence[str | None]]) -> Iterator[int]:
    """Row numbers, ascending, whose id occurred in an earlier row; null ids never count.

    `ids` is read twice and must be re-iterable. Holds 8 bytes per row: rows are first told apart by
    a 64-bit hash, and only ids whose hash repeats are then compared themselves.
    """
    hashes = np.concatenate(
        [np.empty(0, np.int64), *(np.fromiter(map(hash, chunk), np.int64) for chunk in ids)]
    )
    ordered = np.sort(hashes)
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    seen: set[str] = set()
    row = -1
    for chunk in ids:
        for value in chunk:
            row += 1
            if value is None or hash(value) not in suspects:
                continue
            if value in seen:
                yield row
            seen.add(value)


class IdColumn:
    """The id column of all files, chunk by chunk, as often as it is asked for."""

    def __init__(self, files: list[str], column: str) -> None:
        self._files = files
        self._column = column

    def __iter__(self) -> Iterator[list[str | None]]:
        for file in self._files:
            with reading_parquet(file) as parquet:
                for batch in parquet.iter_batches(columns=[self._column]):
                    yield ids_of(batch.column(0))


def ids_of(column: pa.Array) -> list[str | None]:
    """Ids as text; None where there is none."""
    texts = [as_text(value) for value in raw_text(column)]
    return [None if text is None or text == "" else str(text) for text in texts]


def marked_duplicates(units: list[Unit], sizes: list[tuple[str, int]], ids: IdColumn) -> list[Unit]:
    """`units` over files of `sizes` (location, rows), each with its rows whose id an earlier row
    has.
    """
    begin_of_file: dict[str, int] = {}
    total = 0
    for file, rows in sizes:
        begin_of_file[file] = total
        total += rows
    repeated = list(repeated_rows(ids))
    if not repeated:
        return units
    marked: list[Unit] = []
    for unit in units:
        begin = begin_of_file[unit.file]
        low, high = begin + unit.first, begin + unit.first + unit.rows
        inside = repeated[bisect_left(repeated, low) : bisect_left(repeated, high)]
        rows = tuple(row - begin for row in inside)
        marked.append(Unit(unit.index, unit.file, unit.first, unit.rows, rows))
    return marked
