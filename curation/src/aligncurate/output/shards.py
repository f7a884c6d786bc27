"""Reading shards of AlignStack datasets: checked, batched by column size, converted to and from
Arrow without copying.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.core.vectors import column_values
from alignshared import ContractError, Dataset, InputError, ShardInfo
from alignshared.schema import LEVEL_COLUMN, SCORE_COLUMN, require_columns
from alignshared.shards import IMAGE_ROW_GROUP

PLAIN_ROWS_PER_BATCH = 1 << 16


def open_checked(dataset: Dataset, shard: ShardInfo) -> pq.ParquetFile:
    """Open `shard` and check its number of rows against the manifest.

    Raises:
        ContractError: they differ.
    """
    parquet = dataset.open_shard(shard)
    rows = parquet.metadata.num_rows
    if rows != shard.rows:
        parquet.close()
        raise ContractError(
            f"{shard.file} in {dataset.location} has {rows:,} rows and the manifest says "
            f"{shard.rows:,}; copy the shard again or write the dataset again."
        )
    return parquet


@contextmanager
def open_matching(
    dataset: Dataset, shard: ShardInfo, schema: pa.Schema
) -> Iterator[pq.ParquetFile]:
    """Open `shard` and check its number of rows against the manifest and its columns against
    `schema`.

    Raises:
        ContractError: they differ.
    """
    with open_checked(dataset, shard) as parquet:
        if not parquet.schema_arrow.equals(schema):
            raise ContractError(
                f"the columns of {shard.file} in {dataset.location} are not those of its "
                "first shard; write the dataset again."
            )
        yield parquet


def rows_per_batch(columns: Sequence[str]) -> int:
    """Rows of `columns` to read at a time: one row group with images, which are large, else
    65,536.
    """
    return IMAGE_ROW_GROUP if "image" in columns else PLAIN_ROWS_PER_BATCH


def scores_of(batch: pa.RecordBatch, by: str = SCORE_COLUMN) -> npt.NDArray[np.float32]:
    """Return the column `by` of numbers [n] as float32, NaN for null, infinite where too large."""
    return column_values(batch.column(by).cast(pa.float32(), safe=False), np.nan)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type can be read by `scores_of`."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def require_scores(schema: pa.Schema, by: str, where: str) -> None:
    """Raise InputError unless `schema` has the column `by` of numbers to sort into levels; `where`
    names the dataset.
    """
    numbers = [f.name for f in schema if is_number(f.type) and f.name != LEVEL_COLUMN]
    if by == SCORE_COLUMN:
        require_columns(schema, [by], where)
    elif by not in numbers:
        found = "has none of this name"
        if by in schema.names:
            found = f"has one of {schema.field(by).type}"
        if by == LEVEL_COLUMN:
            found = "has the levels themselves there"
        raise InputError(
            f"--by {by} needs a column of numbers and {where} {found}; give one of "
            f"{', '.join(numbers)}."
        )


def as_mask(keep: npt.NDArray[np.bool_]) -> pa.BooleanArray:
    """Return `keep` [n] as an Arrow boolean array, one bit per row."""
    bits = np.packbits(keep, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(keep), [None, pa.py_buffer(bits)])
