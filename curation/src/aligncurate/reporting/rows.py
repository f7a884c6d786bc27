"""Reading a few rows of a dataset by position."""

from collections.abc import Collection, Iterator, Sequence

import pyarrow.parquet as pq

from alignshared import Dataset
from alignshared.shards import row_groups

_IMAGE_ROWS = 16
"""Number of rows whose images are in memory at a time."""


def read_rows(
    dataset: Dataset, positions: Collection[tuple[int, int]], columns: Sequence[str]
) -> Iterator[tuple[tuple[int, int], dict[str, object]]]:
    """Read the existing `columns` of each wanted (shard, row), from only the row groups needed."""
    for index in sorted({shard for shard, _ in positions}):
        rows = sorted(row for shard, row in positions if shard == index)
        with dataset.open_shard(dataset.manifest.shards[index]) as parquet:
            names = [name for name in columns if name in parquet.schema_arrow.names]
            for group, begin, end in row_groups(parquet):
                inside = [row - begin for row in rows if begin <= row < end]
                if inside:
                    for row, values in _rows_of_group(parquet, group, names, inside):
                        yield (index, begin + row), values


def _rows_of_group(
    parquet: pq.ParquetFile, group: int, columns: list[str], rows: list[int]
) -> Iterator[tuple[int, dict[str, object]]]:
    begin = 0
    batches = parquet.iter_batches(batch_size=_IMAGE_ROWS, row_groups=[group], columns=columns)
    for batch in batches:
        for row in rows:
            if begin <= row < begin + batch.num_rows:
                yield row, batch.slice(row - begin, 1).to_pylist()[0]
        begin += batch.num_rows
        if begin > rows[-1]:
            return
