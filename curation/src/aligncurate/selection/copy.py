"""Copying the rows of a dataset that a stage chose: what filter and sample share.

Which rows are kept is known, one bit for each, before the first is copied, so pictures are read
once and only where a row group holds a row to keep. Neighbouring shards of which little is left
become one: a filter that keeps a pair in a hundred leaves no million of tiny files. The cut depends
on the rows alone, so a run that was interrupted goes on shard by shard.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.levels.edges import open_checked
from aligncurate.output.folder import OutputState, finish, open_output, provenance
from aligncurate.progress import OnProgress, silent
from aligncurate.reporting.summary import level_values, score_values
from aligncurate.threads import map_ordered
from aligncurate.units.records import (
    FinishedBatch,
    Timing,
    UnitError,
    UnitRecord,
    finished_units,
    released_if_empty,
    write_unit,
)
from alignshared import (
    AlignError,
    ContractError,
    Dataset,
    LevelEdges,
    LevelStatistics,
    Manifest,
    Parent,
    ShardInfo,
    Storage,
)
from alignshared.levels import LevelAccumulator, levels_to_json
from alignshared.manifest import LEVELS_FILE, MANIFEST_FILE
from alignshared.schema import LEVEL_COLUMN, require_columns, with_features
from alignshared.shards import IMAGE_ROW_GROUP, row_groups

PLAIN_ROWS_PER_BATCH = 1 << 16

_log = logging.getLogger("aligncurate")

Keep = Callable[[pa.RecordBatch], npt.NDArray[np.bool_]]
"""From a batch of n rows to n bools; called from several threads."""


def rows_per_batch(columns: Sequence[str]) -> int:
    """How many rows of `columns` to read at a time; those with pictures are large and lie in small
    row groups, of which one is read at a time.
    """
    return IMAGE_ROW_GROUP if "image" in columns else PLAIN_ROWS_PER_BATCH


def as_mask(keep: npt.NDArray[np.bool_]) -> pa.BooleanArray:
    """`keep` [n] as an Arrow array of one bit for each row."""
    bits = np.packbits(keep, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(keep), [None, pa.py_buffer(bits)])


@contextmanager
def open_matching(
    dataset: Dataset, shard: ShardInfo, schema: pa.Schema
) -> Iterator[pq.ParquetFile]:
    """The shard, open, once it is found to have the manifest's rows and the columns of `schema`.

    Raises:
        ContractError: it has not.
    """
    with open_checked(dataset, shard) as parquet:
        if not parquet.schema_arrow.equals(schema):
            raise ContractError(
                f"the columns of {shard.file} in {dataset.location} are not those of its "
                "first shard; write the dataset again."
            )
        yield parquet


def finished_already(storage: Storage, config: dict[str, Any]) -> Dataset | None:
    """The dataset in `storage` if a run of `config` has finished it, which is then logged.

    Raises:
        InputError: it holds the result of another configuration.
    """
    if not storage.exists(MANIFEST_FILE):
        return None
    open_output(storage, config, overwrite=False)
    _log.info("%s is finished already; nothing to do.", storage.location)
    return Dataset(storage.location)


def choose_rows(
    dataset: Dataset,
    columns: Sequence[str],
    keep: Keep,
    workers: int,
    on_progress: OnProgress = silent,
) -> list[pa.BooleanArray]:
    """One pass over `columns`: for each shard of `dataset`, which of its rows `keep` keeps."""

    def choose(shard: ShardInfo) -> pa.BooleanArray:
        parts = [np.empty(0, dtype=np.bool_)]
        with open_checked(dataset, shard) as parquet:
            size = rows_per_batch(columns)
            parts += map(keep, dataset.shard_batches(shard, parquet, columns, size))
        return as_mask(np.concatenate(parts))

    kept: list[pa.BooleanArray] = []
    for mask in map_ordered(choose, dataset.manifest.shards, workers):
        kept.append(mask)
        on_progress(len(mask))
    return kept


@dataclass(frozen=True, slots=True)
class _Part:
    """Shards of the input that become one shard, and which of their rows are kept."""

    index: int
    shards: list[ShardInfo]
    kept: list[pa.BooleanArray]

    @property
    def rows_in(self) -> int:
        return sum(shard.rows for shard in self.shards)


def write_chosen(
    dataset: Dataset,
    storage: Storage,
    stage: str,
    config: dict[str, Any],
    kept: Sequence[pa.BooleanArray],
    *,
    workers: int,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Write the rows of `dataset` that `kept` tells to `storage`, as `copy_chosen` does, and finish
    it as a dataset.

    Args:
        dataset: what to copy from.
        storage: the folder to write; claimed for `config`.
        stage: what the manifest calls the stage.
        config: the full configuration; what stands under `execution` changes no row.
        kept: one bit for each row of each shard of `dataset`, in the order of its manifest.
        workers: threads; their number changes no byte of a shard.
        overwrite: replace a dataset or unfinished run in `storage`.
        on_progress: called with rows of the input that are dealt with, kept or not.

    Raises:
        ContractError: a shard is not what the manifest says.
    """
    if open_output(storage, config, overwrite=overwrite) is OutputState.FINISHED:
        return Dataset(storage.location)
    with released_if_empty(storage):
        made = copy_chosen(
            dataset, storage, stage, config, kept, workers=workers, on_progress=on_progress
        )
        return finish(storage, made)


def copy_chosen(
    dataset: Dataset,
    storage: Storage,
    stage: str,
    config: dict[str, Any],
    kept: Sequence[pa.BooleanArray],
    *,
    workers: int,
    on_progress: OnProgress = silent,
) -> Manifest:
    """Write the rows of `dataset` that `kept` tells, all columns, in their order, to `storage`,
    which was claimed for `config`; the manifest that describes them is returned, not written.

    A levelled dataset stays levelled: its edges are kept and the statistics of the levels are those
    of the rows that are left. An unfinished run of the same configuration is gone on with.

    Raises:
        ContractError: a shard is not what the manifest says.
    """
    schema = dataset.schema
    records = _copy(dataset, storage, schema, _parts(dataset, kept), workers, on_progress)
    statistics = _level_statistics(dataset, kept, workers)
    edges = dataset.manifest.level_edges
    if edges and statistics:
        storage.write_json(LEVELS_FILE, levels_to_json(edges, statistics))
    shards = [record.shard for record in records]
    return _manifest(dataset, stage, config, shards, statistics)


def _parts(dataset: Dataset, kept: Sequence[pa.BooleanArray]) -> list[_Part]:
    """The shards of `dataset` in runs of which no more rows are kept than its largest shard has."""
    shards = dataset.manifest.shards
    most = max((shard.rows for shard in shards), default=0)
    runs: list[_Part] = []
    held = most + 1
    for shard, mask in zip(shards, kept, strict=True):
        if len(mask) != shard.rows:
            raise ValueError(f"{len(mask)} bits for the {shard.rows} rows of {shard.file}")
        held += mask.true_count
        if held > most:
            runs.append(_Part(len(runs), [], []))
            held = mask.true_count
        runs[-1].shards.append(shard)
        runs[-1].kept.append(mask)
    return runs


def _copy(
    dataset: Dataset,
    storage: Storage,
    schema: pa.Schema,
    parts: list[_Part],
    workers: int,
    on_progress: OnProgress,
) -> list[UnitRecord]:
    done = {record.index: record for record in finished_units(storage)}
    for part in parts:
        if part.index in done:
            on_progress(part.rows_in)
    to_do = [part for part in parts if part.index not in done]

    def write(part: _Part) -> UnitRecord:
        batches = _chosen_batches(dataset, schema, part)
        try:
            return write_unit(storage, part.index, with_features(schema), batches)
        except UnitError as error:  # of a dataset of ours no part can be done without
            if isinstance(error.__cause__, AlignError):
                raise error.__cause__ from None
            raise AlignError(
                f"{part.shards[0].file} in {dataset.location} cannot be copied: {error}; run the "
                "same command to go on."
            ) from error

    for part, record in zip(to_do, map_ordered(write, to_do, workers), strict=True):
        done[record.index] = record
        on_progress(part.rows_in)
    return [done[part.index] for part in parts]


def _chosen_batches(dataset: Dataset, schema: pa.Schema, part: _Part) -> Iterator[FinishedBatch]:
    for shard, mask in zip(part.shards, part.kept, strict=True):
        if not mask.true_count:
            continue
        with open_matching(dataset, shard, schema) as parquet:
            groups, wanted = _touched(parquet, mask)
            size, first = rows_per_batch(schema.names), 0
            for batch in dataset.shard_batches(shard, parquet, None, size, groups):
                rows = batch.filter(wanted.slice(first, batch.num_rows))
                first += batch.num_rows
                yield FinishedBatch(pa.Table.from_batches([rows]), [], Timing())


def _touched(parquet: pq.ParquetFile, mask: pa.BooleanArray) -> tuple[list[int], pa.BooleanArray]:
    """Row groups that hold a row to keep, and the bits of their rows."""
    groups: list[int] = []
    bits: list[pa.BooleanArray] = []
    for group, first, end in row_groups(parquet):
        some = mask.slice(first, end - first)
        if some.true_count:
            groups.append(group)
            bits.append(some)
    return groups, pa.concat_arrays(bits)


def _level_statistics(
    dataset: Dataset, kept: Sequence[pa.BooleanArray], workers: int
) -> list[LevelStatistics] | None:
    """Statistics of the kept rows by level; None where there are no levels."""
    edges = dataset.manifest.level_edges
    if edges is None:
        return None
    columns = ("score", LEVEL_COLUMN)
    if dataset.manifest.shards:
        require_columns(dataset.schema, columns, dataset.location)

    def count(work: tuple[ShardInfo, pa.BooleanArray]) -> LevelAccumulator:
        return _levels_of(dataset, edges, *work)

    total = LevelAccumulator(edges.levels)
    some = [
        (shard, mask)
        for shard, mask in zip(dataset.manifest.shards, kept, strict=True)
        if mask.true_count
    ]
    # Added in the order of the shards: the same sums, to the bit, for any number of workers.
    for part in map_ordered(count, some, workers):
        total.merge(part)
    return total.statistics()


def _levels_of(
    dataset: Dataset, edges: LevelEdges, shard: ShardInfo, mask: pa.BooleanArray
) -> LevelAccumulator:
    found, first = LevelAccumulator(edges.levels), 0
    with open_checked(dataset, shard) as parquet:
        columns = ["score", LEVEL_COLUMN]
        for batch in dataset.shard_batches(shard, parquet, columns):
            rows = batch.filter(mask.slice(first, batch.num_rows))
            first += batch.num_rows
            levels = level_values(rows, edges.levels, f"{shard.file} in {dataset.location}")
            found.add(score_values(rows), levels)
    return found


def _manifest(
    dataset: Dataset,
    stage: str,
    config: dict[str, Any],
    shards: list[ShardInfo],
    statistics: list[LevelStatistics] | None,
) -> Manifest:
    rows, made, parent = sum(shard.rows for shard in shards), provenance(), dataset.manifest
    return Manifest(
        stage=stage,
        rows=rows,
        rejects={},
        shards=shards,
        reject_shards=[],
        config=config,
        parents=[Parent(dataset.location, dataset.digest)],
        model=parent.model,
        models=parent.models,
        scheme=parent.scheme,
        edges=parent.edges,
        level_statistics=statistics,
        left_out=parent.rows - rows,
        package=made["package"],
        created=made["created"],
    )
