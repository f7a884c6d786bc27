"""Spans of a dataset's rows, across shards, and their exported files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from alignshared import Dataset, Storage
from alignshared.shards import IMAGE_ROW_GROUP, groups_of_rows


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `first` to `first + rows` of a dataset, counted from 0; `index` numbers the spans."""

    index: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of an export and its number of pairs."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WrittenSpan:
    """Files written for a span, and the number of separate image files."""

    index: int
    rows: int
    files: list[WrittenFile]
    pictures: int = 0
    without_picture: int = 0


class Exporter(Protocol):
    """An export format. One instance serves one export and is called from several threads."""

    def write(self, span: Span, output: Storage) -> WrittenSpan:
        """Write the rows of `span`, deterministically."""
        ...

    def finish(self, output: Storage, spans: list[WrittenSpan]) -> list[WrittenFile]:
        """Write files that cover all spans; return all files to list, in order."""
        ...


def cut_into_spans(rows: int, size: int) -> list[Span]:
    """Spans of `size` rows over `rows`; the last may be shorter."""
    firsts = range(0, rows, size)
    return [Span(index, first, min(size, rows - first)) for index, first in enumerate(firsts)]


def batches_of(
    dataset: Dataset, span: Span, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `span` in order, in batches of at most one image row group."""
    begin = 0
    for shard in dataset.manifest.shards:
        first, end = max(span.first - begin, 0), min(span.first + span.rows - begin, shard.rows)
        begin += shard.rows
        if first >= end:
            continue
        with dataset.open_shard(shard) as parquet:
            groups, skip = groups_of_rows(parquet, first, end)
            left = end - first
            for batch in dataset.shard_batches(shard, parquet, columns, IMAGE_ROW_GROUP, groups):
                rows = batch.slice(skip, left)
                skip = max(skip - batch.num_rows, 0)
                left -= rows.num_rows
                if rows.num_rows:
                    yield rows


def row_dicts(
    dataset: Dataset, span: Span, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and values of each row of `span`."""
    number = span.first
    for batch in batches_of(dataset, span, columns):
        for row in batch.to_pylist():
            yield number, row
            number += 1
