"""sample: draw a number of pairs evenly from all levels, reproducibly."""

import logging

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
from aligncurate.output.folder import config_of, finished_already, input_and_output
from aligncurate.output.shards import as_mask, open_checked
from aligncurate.reporting.summary import level_values
from aligncurate.selection.copy import copy_chosen, masks_of
from aligncurate.settings import called_with
from aligncurate.stages.settings import SampleSettings
from aligncurate.threads import map_ordered, thread_count
from aligncurate.units.run import write_dataset
from alignshared import Dataset, InputError, Manifest, ShardInfo
from alignshared.schema import LEVEL_COLUMN, require_columns

_log = logging.getLogger("aligncurate")


@called_with(SampleSettings)
def sample(settings: SampleSettings) -> Dataset:
    """Draw pairs of `input` evenly from its levels and write them to `output`, in order.

    The selection depends only on ids, levels and seed, not on shards or workers. A level that is
    too small gives all its pairs, with a warning; with `rows` the others make up for it. Without
    levels, pairs are drawn from the whole. Memory grows by a few bits per pair.

    Arguments are the fields of `SampleSettings`, which are also the command's options;
    `on_progress` is called with the number of pairs read, every pair twice.

    Raises:
        InputError: invalid arguments or unusable folders.
    """
    rows, per_level, threads = settings.rows, settings.per_level, thread_count(settings.workers)
    if not 0 <= settings.seed <= MAX_SEED:
        raise InputError(f"--seed must be from 0 to {MAX_SEED} (got {settings.seed}).")
    dataset, storage = input_and_output("sample", settings, "there is nothing to draw from")
    levelled = dataset.manifest.level_edges is not None
    if per_level is not None and not levelled:
        raise InputError(
            f"--per-level asks for levels and {dataset.location} has none; run aligncurate bucket "
            "on it first, or give --rows."
        )
    keys = _KeyReader(dataset, settings.seed)
    require_columns(dataset.schema, keys.columns, dataset.location)
    config = config_of(dataset, threads, rows=rows, per_level=per_level, seed=settings.seed)
    if finished := finished_already(storage, config, overwrite=settings.overwrite):
        return finished
    counts = KeyCounts(keys.groups)
    for counted in map_ordered(keys, dataset.manifest.shards, threads):
        counts.add(*counted)
    if per_level is None:
        quotas = balanced_quotas(counts.sizes, rows or 0)
    else:
        quotas = [min(per_level, size) for size in counts.sizes]
    _warn_of_short(dataset, counts.sizes, quotas, settings)
    if levelled:
        config["execution"]["pairs_of_levels"] = counts.sizes
    # One pass finds the last keys drawn, one the rows.
    shards, draw = dataset.manifest.shards, Draw(counts, quotas)
    draw.resolve(map_ordered(lambda shard: draw.of_last_bin(*keys(shard)), shards, threads))

    def choose(numbered: tuple[int, ShardInfo]) -> pa.BooleanArray:
        part, shard = numbered
        return as_mask(draw.drawn(part, *keys(shard)))

    masks = masks_of(choose, enumerate(shards), threads, settings.on_progress)

    def write() -> Manifest:
        return copy_chosen(dataset, storage, "sample", config, masks, threads, settings.on_progress)

    return write_dataset(storage, config, write, overwrite=settings.overwrite)


class _KeyReader:
    """Reads a shard's keys [n] and groups [n], a group being its level less 1."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        edges = dataset.manifest.level_edges
        self.groups = edges.levels if edges else 1
        self.columns = ["id", LEVEL_COLUMN] if edges else ["id"]

    def __call__(self, shard: ShardInfo) -> tuple[Keys, Groups]:
        keys, groups = [np.empty(0, np.uint64)], [np.empty(0, np.intp)]
        where = f"{shard.file} in {self.dataset.location}"
        with open_checked(self.dataset, shard) as parquet:
            for batch in self.dataset.shard_batches(shard, parquet, self.columns):
                keys.append(sampling_keys(batch.column("id"), self.seed))
                levels = (
                    level_values(batch, self.groups, where)
                    if len(self.columns) > 1
                    else np.ones(batch.num_rows, dtype=np.int8)
                )
                groups.append(levels.astype(np.intp) - 1)
        return np.concatenate(keys), np.concatenate(groups)


def _warn_of_short(
    dataset: Dataset, sizes: list[int], quotas: list[int], settings: SampleSettings
) -> None:
    if settings.rows is not None and sum(quotas) < settings.rows:
        _log.warning(
            "%s has %d pairs, fewer than --rows %d; all of them are taken.",
            dataset.location, sum(sizes), settings.rows,
        )  # fmt: skip
        return
    shares = (quota for size, quota in zip(sizes, quotas, strict=True) if quota < size)
    quota = settings.per_level or min(shares, default=0)
    short = [
        f"level {level} ({size:,})" for level, size in enumerate(sizes, start=1) if 0 < size < quota
    ]
    if short:
        _log.warning(
            "all pairs are taken of %s, which in %s has fewer than %s.",
            ", ".join(short), dataset.location, f"{quota:,}",
        )  # fmt: skip


def drawn_by_level(dataset: Dataset) -> list[tuple[int, int, int]]:
    """Level, pairs drawn from it, and its size, read from a sample's manifest; empty without
    levels.
    """
    statistics = dataset.manifest.level_statistics or []
    pairs = dataset.manifest.config.get("execution", {}).get("pairs_of_levels", [])
    return [(s.level, s.count, size) for s, size in zip(statistics, pairs, strict=True)]
