"""filter: keep the pairs that meet all conditions, as a new dataset."""

from dataclasses import asdict, dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.output.folder import config_of, finished_already, input_and_output, input_of
from aligncurate.selection.conditions import conditions_over
from aligncurate.selection.copy import choose_rows, copy_chosen, level_statistics
from aligncurate.settings import Conditions, Location, OnProgress, called_with, silent
from aligncurate.stages.settings import FilterSettings
from aligncurate.threads import thread_count
from aligncurate.units.run import write_dataset
from alignshared import Dataset, InputError, Manifest

_EMPTY = "there is nothing to filter"


@dataclass(frozen=True, slots=True)
class ConditionCount:
    """Number of pairs failing a condition, and failing only this one."""

    condition: str
    fail: int
    fail_only_this: int


@dataclass(frozen=True, slots=True)
class FilterCounts:
    """Counts of a filter over `rows` pairs: `levels` are (level, pairs, pairs kept), highest first,
    empty without levels.
    """

    location: str
    rows: int
    kept: int
    conditions: list[ConditionCount]
    levels: list[tuple[int, int, int]]


@called_with(FilterSettings)
def filter(settings: FilterSettings) -> Dataset:
    """Write the pairs of `input` that meet all `conditions` to `output`, in order.

    Columns and level edges are unchanged. Dropped pairs are counted in the manifest, in total as
    `left_out` and per condition in its configuration; `condition_counts` reads these. Memory grows
    by a few bits per pair. An unfinished run is resumed; a finished `output` of the same
    configuration is left as it is.

    Arguments are the fields of `FilterSettings`, which are also the command's options;
    `on_progress` is called with the number of pairs read, every pair twice.

    Raises:
        InputError: unusable conditions or folders, or no pair is kept.
    """
    threads = thread_count(settings.workers)
    dataset, storage = input_and_output("filter", settings, _EMPTY)
    config = config_of(dataset, threads, conditions=settings.conditions.given())
    if finished := finished_already(storage, config, overwrite=settings.overwrite):
        return finished
    # Invalid conditions are refused before the output folder is claimed or replaced.
    masks, counts = _choose(settings.conditions, dataset, threads, settings.on_progress)
    if not any(mask.true_count for mask in masks):
        labels = " and ".join(count.condition for count in counts)
        raise InputError(f"no pair of {dataset.location} fulfils {labels}; nothing was written.")
    config["execution"]["conditions"] = [asdict(count) for count in counts]

    def write() -> Manifest:
        return copy_chosen(dataset, storage, "filter", config, masks, threads, settings.on_progress)

    return write_dataset(storage, config, write, overwrite=settings.overwrite)


def count_filter(
    conditions: Conditions,
    input: Location | None = None,
    *,
    workers: int | None = None,
    on_progress: OnProgress = silent,
) -> FilterCounts:
    """Count what `filter` would keep of `input`, without writing.

    Raises:
        InputError: the conditions or the input are unusable.
    """
    threads = thread_count(workers)
    dataset = input_of(FilterSettings(conditions, input), empty=_EMPTY)
    masks, counts = _choose(conditions, dataset, threads, on_progress)
    before = dataset.manifest.level_statistics or []
    after = level_statistics(dataset, masks, threads) or []
    levels = [(a.level, a.count, b.count) for a, b in zip(before, after, strict=False)][::-1]
    kept = sum(mask.true_count for mask in masks)
    return FilterCounts(dataset.location, dataset.manifest.rows, kept, counts, levels)


def _choose(
    conditions: Conditions, dataset: Dataset, threads: int, on_progress: OnProgress
) -> tuple[list[pa.BooleanArray], list[ConditionCount]]:
    """Return a mask for each shard, and the counts of each condition."""
    tests = conditions_over(conditions, dataset, threads)
    fail, fail_alone = np.zeros((2, len(tests)), dtype=np.int64)
    lock = Lock()

    def keep(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        nonlocal fail, fail_alone
        fails = np.stack([~test.predicate(batch) for test in tests])
        fails_of_row = fails.sum(axis=0)
        with lock:
            fail += fails.sum(axis=1)
            fail_alone += (fails & (fails_of_row == 1)).sum(axis=1)
        return fails_of_row == 0

    columns = sorted({"id"}.union(*(test.predicate.columns for test in tests)))
    if "image" in columns and "image.path" in columns:
        columns.remove("image.path")
    masks = choose_rows(dataset, columns, keep, threads, on_progress)
    counts = zip(tests, fail.tolist(), fail_alone.tolist(), strict=True)
    return masks, [ConditionCount(test.label, *numbers) for test, *numbers in counts]


def condition_counts(dataset: Dataset) -> list[ConditionCount]:
    """Counts of each condition, read from a filtered dataset's manifest."""
    counts = dataset.manifest.config.get("execution", {}).get("conditions", [])
    return [ConditionCount(**count) for count in counts]
