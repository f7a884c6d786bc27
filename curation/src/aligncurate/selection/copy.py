"""Copying selected rows of a dataset, for filter and sample.

The selection, one bit per row, is complete before copying starts, so images are read once and
only from row groups with selected rows. Neighbouring shards with few selected rows are merged,
to avoid millions of tiny files. The cut depends only on the rows, so interrupted runs resume
shard by shard.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.output.shards import (
    as_mask,
    open_checked,
    open_matching,
    rows_per_batch,
    scores_of,
)
from aligncurate.reporting.summary import level_values
from aligncurate.settings import OnProgress
from aligncurate.threads import map_ordered
from aligncurate.units.records import FinishedBatch, Timing, UnitRecord, finished_units, write_unit
from aligncurate.units.run import derived_manifest, required_unit, write_parts
from alignshared import Dataset, LevelStatistics, Manifest, ShardInfo, Storage
from alignshared.levels import LevelAccumulator
from alignshared.schema import LEVEL_COLUMN, require_columns, with_features
from alignshared.shards import row_groups

Item = TypeVar("Item")
Keep = Callable[[pa.RecordBatch], npt.NDArray[np.bool_]]
"""Function from a batch of n rows to n bools; called from several threads."""


def choose_rows(
    dataset: Dataset, columns: Sequence[str], keep: Keep, workers: int, on_progress: OnProgress
) -> list[pa.BooleanArray]:
    """Run one pass over `columns`; return a mask of rows to `keep` for each shard of `dataset`."""

    def choose(shard: ShardInfo) -> pa.BooleanArray:
        parts = [np.empty(0, dtype=np.bool_)]
        with open_checked(dataset, shard) as parquet:
            size = rows_per_batch(columns)
            parts += map(keep, dataset.shard_batches(shard, parquet, columns, size))
        return as_mask(np.concatenate(parts))

    return masks_of(choose, dataset.manifest.shards, workers, on_progress)


def masks_of(
    choose: Callable[[Item], pa.BooleanArray],
    items: Iterable[Item],
    workers: int,
    on_progress: OnProgress,
) -> list[pa.BooleanArray]:
    """Masks that `choose` returns of `items`, one for each shard; called on several threads."""
    masks: list[pa.BooleanArray] = []
    for mask in map_ordered(choose, items, workers):
        masks.append(mask)
        on_progress(len(mask))
    return masks


@dataclass(frozen=True, slots=True)
class _Part:
    """Input shards that become one shard, and the masks of their rows."""

    index: int
    shards: list[ShardInfo]
    masks: list[pa.BooleanArray]

    @property
    def rows(self) -> int:
        """Number of input rows."""
        return sum(shard.rows for shard in self.shards)


def copy_chosen(
    dataset: Dataset,
    storage: Storage,
    stage: str,
    config: dict[str, Any],
    masks: Sequence[pa.BooleanArray],
    workers: int,
    on_progress: OnProgress,
) -> Manifest:
    """Copy the rows of `dataset` selected by `masks`, one bit per row of each shard, with all
    columns and in order, to `storage`, claimed for `config`; return the manifest of `stage`,
    unwritten.

    Levels keep their edges, with statistics of the remaining rows. An unfinished run of the same
    configuration is resumed. The number of `workers` changes no byte of a shard; `on_progress` is
    called with the number of input rows processed, kept or not.

    Raises:
        ContractError: a shard does not match the manifest.
    """
    schema = dataset.schema

    def write(part: _Part) -> UnitRecord:
        batches = _chosen_batches(dataset, schema, part)
        with required_unit(f"{part.shards[0].file} in {dataset.location}"):
            return write_unit(storage, part.index, with_features(schema), batches)

    parts, finished = _parts(dataset, masks), finished_units(storage)
    records = write_parts(storage, parts, finished, write, workers=workers, on_progress=on_progress)
    statistics = level_statistics(dataset, masks, workers)
    edges = dataset.manifest.level_edges
    return derived_manifest(stage, dataset, storage, config, records, edges, statistics)


def _parts(dataset: Dataset, masks: Sequence[pa.BooleanArray]) -> list[_Part]:
    """Group the shards of `dataset` so that no part keeps more rows than the largest shard has."""
    shards = dataset.manifest.shards
    most = max((shard.rows for shard in shards), default=0)
    runs: list[_Part] = []
    held = most + 1
    for shard, mask in zip(shards, masks, strict=True):
        if len(mask) != shard.rows:
            raise ValueError(f"{len(mask)} bits for the {shard.rows} rows of {shard.file}")
        held += mask.true_count
        if held > most:
            runs.append(_Part(len(runs), [], []))
            held = mask.true_count
        runs[-1].shards.append(shard)
        runs[-1].masks.append(mask)
    return runs


def _chosen_batches(dataset: Dataset, schema: pa.Schema, part: _Part) -> Iterator[FinishedBatch]:
    for shard, mask in zip(part.shards, part.masks, strict=True):
        if not mask.true_count:
            continue
        with open_matching(dataset, shard, schema) as parquet:
            groups, bits = _touched(parquet, mask)
            size, first = rows_per_batch(schema.names), 0
            for batch in dataset.shard_batches(shard, parquet, None, size, groups):
                rows = batch.filter(bits.slice(first, batch.num_rows))
                first += batch.num_rows
                yield FinishedBatch(pa.Table.from_batches([rows]), [], Timing())


def _touched(parquet: pq.ParquetFile, mask: pa.BooleanArray) -> tuple[list[int], pa.BooleanArray]:
    """Yield the row groups with selected rows, and their masks."""
    groups: list[int] = []
    bits: list[pa.BooleanArray] = []
    for group, first, end in row_groups(parquet):
        some = mask.slice(first, end - first)
        if some.true_count:
            groups.append(group)
            bits.append(some)
    return groups, pa.concat_arrays(bits)


def level_statistics(
    dataset: Dataset, masks: Sequence[pa.BooleanArray], workers: int
) -> list[LevelStatistics] | None:
    """Statistics of the kept rows by level; None without levels."""
    edges = dataset.manifest.level_edges
    if edges is None:
        return None
    columns = [edges.by, LEVEL_COLUMN]
    if dataset.manifest.shards:
        require_columns(dataset.schema, columns, dataset.location)

    def count(work: tuple[ShardInfo, pa.BooleanArray]) -> LevelAccumulator:
        shard, mask = work
        counts, first = LevelAccumulator(edges.levels), 0
        with open_checked(dataset, shard) as parquet:
            for batch in dataset.shard_batches(shard, parquet, columns):
                rows = batch.filter(mask.slice(first, batch.num_rows))
                first += batch.num_rows
                levels = level_values(rows, edges.levels, f"{shard.file} in {dataset.location}")
                counts.add(scores_of(rows, edges.by), levels)
        return counts

    total = LevelAccumulator(edges.levels)
    chosen = zip(dataset.manifest.shards, masks, strict=True)
    some = [(shard, mask) for shard, mask in chosen if mask.true_count]
    # Added in shard order: bit-identical sums for any number of workers.
    for part in map_ordered(count, some, workers):
        total.merge(part)
    return total.statistics()
