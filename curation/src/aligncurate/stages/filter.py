"""filter: keep the pairs that fulfil all of some conditions, as a dataset of their own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.output.folder import finished_already
from aligncurate.output.locations import newest_dataset, refuse_to_write_over, sibling_output
from aligncurate.progress import OnProgress, silent
from aligncurate.selection.conditions import Condition, Conditions, conditions_over
from aligncurate.selection.copy import (
    choose_rows,
    write_chosen,
)
from aligncurate.threads import available_cores
from alignshared import Dataset, InputError, Storage

FILTERED_STAGES = ("bucket", "score")
"""Of which the newest under `data/` is meant where no input is named."""

Location = str | os.PathLike[str]


def filter(
    conditions: Conditions,
    input: Location | None = None,
    output: Location | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Write the pairs of `input` that fulfil all `conditions` to `output`, in their order.

    The columns are those of the input, levels keep their edges, and what the conditions drop is
    counted in the manifest, as `left_out` and one by one in its configuration, but not copied.
    Memory grows by a few bits for each pair. An unfinished run is gone on with, and a finished
    `output` of the same configuration is left as it is.

    Args:
        conditions: at least one.
        input: a dataset; by default the newest levelled or scored one under `data/`.
        output: a new folder; by default `filter` beside `input`.
        workers: threads; by default one per core.
        overwrite: replace a dataset or unfinished run in `output`.
        on_progress: called with the number of pairs read; every pair is dealt with twice.

    Returns:
        The filtered dataset; `condition_counts` tells what each condition drops.

    Raises:
        InputError: the conditions or the folders cannot be used as they are, or no pair is kept.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} cannot be: give 1 or more.")
    dataset = newest_dataset(*FILTERED_STAGES) if input is None else Dataset(input)
    storage = Storage(sibling_output(dataset, "filter") if output is None else output)
    refuse_to_write_over(storage.location, dataset.location)
    if dataset.manifest.rows == 0:
        raise InputError(f"{dataset.location} is empty, so there is nothing to filter.")
    threads = workers or available_cores()
    config: dict[str, Any] = {
        "input": dataset.location,
        "input_sha256": dataset.digest,
        "conditions": conditions.given(),
        "execution": {"workers": threads},
    }
    if finished := finished_already(storage, config, overwrite=overwrite):
        return finished
    # Conditions that cannot be used are refused before the output folder is claimed or replaced.
    tests = conditions_over(conditions, dataset, threads)
    counts = _Counts(tests)
    columns = sorted({"id"}.union(*(test.columns for test in tests)))
    if "image" in columns and "image.path" in columns:
        columns.remove("image.path")
    kept = choose_rows(dataset, columns, counts.keep, threads, on_progress)
    if not any(mask.true_count for mask in kept):
        raise InputError(
            f"no pair of {dataset.location} fulfils {_all_of(tests)}; nothing was written."
        )
    config["execution"]["conditions"] = counts.told()
    return write_chosen(
        dataset, storage, "filter", config, kept,
        workers=threads, overwrite=overwrite, on_progress=on_progress,
    )  # fmt: skip


def _all_of(tests: Sequence[Condition]) -> str:
    return " and ".join(test.text for test in tests)


class _Counts:
    """Applies conditions to batches, from any thread, and counts what each of them drops."""

    def __init__(self, tests: list[Condition]) -> None:
        self._tests = tests
        self._fail = np.zeros(len(tests), dtype=np.int64)
        self._fail_alone = np.zeros(len(tests), dtype=np.int64)
        self._lock = Lock()

    def keep(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which rows [n] of `batch` fulfil all conditions."""
        fails = np.stack([~test.passes(batch) for test in self._tests])
        how_many = fails.sum(axis=0)
        with self._lock:
            self._fail += fails.sum(axis=1)
            self._fail_alone += (fails & (how_many == 1)).sum(axis=1)
        return how_many == 0

    def told(self) -> list[dict[str, Any]]:
        """The counts as the manifest has them."""
        rows = zip(self._tests, self._fail.tolist(), self._fail_alone.tolist(), strict=True)
        return [
            {"condition": test.text, "fail": fail, "fail_only_this": alone}
            for test, fail, alone in rows
        ]


@dataclass(frozen=True, slots=True)
class ConditionCount:
    """How many pairs fail a condition, and how many fail this one and no other."""

    condition: str
    fail: int
    fail_only_this: int


def condition_counts(dataset: Dataset) -> list[ConditionCount]:
    """What each condition of a filter drops by itself, as the manifest of `dataset` tells it."""
    told = dataset.manifest.config.get("execution", {}).get("conditions", [])
    return [ConditionCount(**count) for count in told]
