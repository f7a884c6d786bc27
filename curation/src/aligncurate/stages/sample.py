"""sample: draw a number of pairs evenly from all levels, reproducibly."""

import logging
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from aligncurate.core.sampling import (
    MAX_SEED,
    Draw,
    Groups,
    KeyCounts,
    Keys,
    balanced_quotas,
    sampling_keys,
)
from aligncurate.output.folder import finished_already
from aligncurate.output.locations import newest_dataset, refuse_to_write_over, sibling_output
from aligncurate.output.shards import as_mask, open_checked
from aligncurate.progress import OnProgress, silent
from aligncurate.reporting.summary import level_values
from aligncurate.selection.copy import (
    write_chosen,
)
from aligncurate.settings import Location
from aligncurate.threads import available_cores, map_ordered
from alignshared import Dataset, InputError, ShardInfo, Storage
from alignshared.schema import LEVEL_COLUMN, require_columns

SAMPLED_STAGES = ("filter", "bucket")
"""Stages whose newest dataset under `data/` is the default input."""


_log = logging.getLogger("aligncurate")


def sample(
    input: Location | None = None,
    output: Location | None = None,
    *,
    rows: int | None = None,
    per_level: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Draw pairs of `input` evenly from its levels and write them to `output`, in order.

    The selection depends only on ids, levels and seed, not on shards or workers. A level that is
    too small gives all its pairs; with `rows` the others make up for it. Without levels, pairs
    are drawn from the whole. Memory grows by a few bits per pair.

    Args:
        input: a dataset; by default the newest filtered or levelled one under `data/`.
        output: a new folder; by default `sample` beside `input`.
        rows: total number of pairs.
        per_level: number of pairs per level, instead of `rows`.
        seed: seed of the draw.
        workers: threads; by default one per core.
        overwrite: replace a dataset or unfinished run in `output`.
        on_progress: called with the number of pairs read; every pair is processed twice.

    Returns:
        The sample; a warning is logged for each level with too few pairs.

    Raises:
        InputError: invalid arguments or unusable folders.
    """
    _check_arguments(rows, per_level, seed, workers)
    dataset = newest_dataset(*SAMPLED_STAGES) if input is None else Dataset(input)
    storage = Storage(sibling_output(dataset, "sample") if output is None else output)
    _check_dataset(dataset, storage, per_level)
    threads = workers or available_cores()
    config: dict[str, Any] = {
        "input": dataset.location,
        "input_sha256": dataset.digest,
        "rows": rows,
        "per_level": per_level,
        "seed": seed,
        "execution": {"workers": threads},
    }
    if finished := finished_already(storage, config, overwrite=overwrite):
        return finished
    keys = _KeyReader(dataset, seed)
    counts = _count(keys, threads)
    if per_level is None:
        quotas = balanced_quotas(counts.sizes, rows or 0)
    else:
        quotas = [min(per_level, size) for size in counts.sizes]
    _warn_of_short(dataset, counts.sizes, quotas, rows, per_level)
    if dataset.manifest.level_edges:
        config["execution"]["pairs_of_levels"] = counts.sizes
    masks = _drawn(keys, Draw(counts, quotas), threads, on_progress)
    return write_chosen(
        dataset, storage, "sample", config, masks,
        workers=threads, overwrite=overwrite, on_progress=on_progress,
    )  # fmt: skip


def _check_arguments(
    rows: int | None, per_level: int | None, seed: int, workers: int | None
) -> None:
    if (rows is None) == (per_level is None):
        raise InputError(
            "give either --rows, the pairs in all, or --per-level, the pairs of each level."
        )
    for option, value in (("--rows", rows), ("--per-level", per_level), ("--workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1 (got {value}).")
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"--seed must be from 0 to {MAX_SEED} (got {seed}).")


def _check_dataset(dataset: Dataset, storage: Storage, per_level: int | None) -> None:
    refuse_to_write_over(storage.location, dataset.location)
    if dataset.manifest.rows == 0:
        raise InputError(f"{dataset.location} is empty, so there is nothing to draw from.")
    levelled = dataset.manifest.level_edges is not None
    if per_level is not None and not levelled:
        raise InputError(
            f"--per-level asks for levels and {dataset.location} has none; run aligncurate bucket "
            "on it first, or give --rows."
        )
    columns = ("id", LEVEL_COLUMN) if levelled else ("id",)
    require_columns(dataset.schema, columns, dataset.location)


class _KeyReader:
    """Reads a shard's keys [n] and groups [n], a group being its level less 1."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        edges = dataset.manifest.level_edges
        self.groups = edges.levels if edges else 1
        self._columns = ["id", LEVEL_COLUMN] if edges else ["id"]

    def __call__(self, shard: ShardInfo) -> tuple[Keys, Groups]:
        keys, groups = [np.empty(0, np.uint64)], [np.empty(0, np.intp)]
        where = f"{shard.file} in {self.dataset.location}"
        with open_checked(self.dataset, shard) as parquet:
            for batch in self.dataset.shard_batches(shard, parquet, self._columns):
                keys.append(sampling_keys(batch.column("id"), self.seed))
                levels = (
                    level_values(batch, self.groups, where)
                    if len(self._columns) > 1
                    else np.ones(batch.num_rows, dtype=np.int8)
                )
                groups.append(levels.astype(np.intp) - 1)
        return np.concatenate(keys), np.concatenate(groups)


def _count(keys: _KeyReader, threads: int) -> KeyCounts:
    total, lock = KeyCounts(keys.groups), Lock()

    def count(shard: ShardInfo) -> None:
        counted = keys(shard)
        with lock:
            total.add(*counted)

    for _ in map_ordered(count, keys.dataset.manifest.shards, threads):
        pass
    return total


def _drawn(
    keys: _KeyReader, draw: Draw, threads: int, on_progress: OnProgress
) -> list[pa.BooleanArray]:
    """Return a mask of drawn rows for each shard: one pass finds the last keys, one the rows."""
    shards = keys.dataset.manifest.shards
    draw.resolve(map_ordered(lambda shard: draw.of_last_bin(*keys(shard)), shards, threads))

    def choose(numbered: tuple[int, ShardInfo]) -> pa.BooleanArray:
        part, shard = numbered
        return as_mask(draw.drawn(part, *keys(shard)))

    masks: list[pa.BooleanArray] = []
    for mask in map_ordered(choose, enumerate(shards), threads):
        masks.append(mask)
        on_progress(len(mask))
    return masks


def _warn_of_short(
    dataset: Dataset,
    sizes: list[int],
    quotas: list[int],
    rows: int | None,
    per_level: int | None,
) -> None:
    if rows is not None and sum(quotas) < rows:
        _log.warning(
            "%s has %d pairs, fewer than --rows %d; all of them are taken.",
            dataset.location, sum(sizes), rows,
        )  # fmt: skip
        return
    shares = (quota for size, quota in zip(sizes, quotas, strict=True) if quota < size)
    quota = per_level or min(shares, default=0)
    short = [
        f"level {level} ({size:,})" for level, size in enumerate(sizes, start=1) if 0 < size < quota
    ]
    if short:
        _log.warning(
            "all pairs are taken of %s, which in %s has fewer than %s.",
            ", ".join(short), dataset.location, f"{quota:,}",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LevelDrawn:
    """Number of pairs drawn from a level, and its size."""

    level: int
    drawn: int
    pairs: int


def drawn_by_level(dataset: Dataset) -> list[LevelDrawn]:
    """Pairs drawn from each level, read from a sample's manifest; empty without levels."""
    statistics = dataset.manifest.level_statistics or []
    pairs = dataset.manifest.config.get("execution", {}).get("pairs_of_levels", [])
    return [
        LevelDrawn(drawn.level, drawn.count, size)
        for drawn, size in zip(statistics, pairs, strict=True)
    ]
