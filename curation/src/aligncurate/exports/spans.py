"""Spans of a dataset's rows, across shards, and names and values valid in any file system, tar or
JSON reader.

Ids may be paths, differ only in case, or exceed file name limits, so files are named after row
numbers and the id is in the record.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from alignshared import Dataset, ShardInfo, Storage
from alignshared.images import image_format
from alignshared.shards import IMAGE_ROW_GROUP, groups_of_rows, rows_within

_SUFFIXES = {
    "AVIF": "avif",
    "BMP": "bmp",
    "DIB": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "JPEG2000": "jp2",
    "MPO": "jpg",
    "PNG": "png",
    "PPM": "ppm",
    "TIFF": "tif",
    "WEBP": "webp",
}
_UNKNOWN = "bin"


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `first` to `first + rows` of a dataset, counted from 0; `index` numbers the spans."""

    index: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class WrittenSpan:
    """Files written for a span, and the number of separate image files."""

    index: int
    rows: int
    files: list[ShardInfo]
    pictures: int = 0
    without_picture: int = 0


class Exporter(Protocol):
    """An export format. One instance serves one export and is called from several threads."""

    def write(self, span: Span, output: Storage) -> WrittenSpan:
        """Write the rows of `span`, deterministically."""
        ...

    def finish(self, output: Storage, spans: list[WrittenSpan]) -> list[ShardInfo]:
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
            batches = dataset.shard_batches(shard, parquet, columns, IMAGE_ROW_GROUP, groups)
            yield from rows_within(batches, skip, end - first)


def row_dicts(
    dataset: Dataset, span: Span, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and values of each row of `span`."""
    number = span.first
    for batch in batches_of(dataset, span, columns):
        for row in batch.to_pylist():
            yield number, row
            number += 1


def row_name(number: int) -> str:
    """File name of row `number`, without suffix."""
    return f"{number:09d}"


def image_suffix(data: bytes) -> str:
    """Suffix for the format of the bytes, whatever the original name."""
    kind = image_format(data)
    return _UNKNOWN if kind is None else _SUFFIXES.get(kind, kind.lower())


def json_line(value: Any) -> bytes:
    """Return `value` as one line of JSON: NaN and infinities become null, dates and others text."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)
    return text.encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value
