"""Runs over units and other parts of a result: remaining work and its outcome.

`UnitRun` records a failed unit and continues. The run then ends with an error and without a
dataset, unless failed units are retried or their rows made rejects. Without either, they are left
alone, since one that kills its workers would do so at every start.
`write_parts`, for parts of an AlignStack dataset, stops at the first error.
"""

import logging
import posixpath
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from aligncurate.output.folder import OutputState, finish, open_output
from aligncurate.settings import OnProgress
from aligncurate.sources import Unit
from aligncurate.threads import map_ordered
from aligncurate.units.records import (
    FAILURES_FOLDER,
    FinishedBatch,
    Timing,
    UnitError,
    UnitFailure,
    UnitRecord,
    failed_units,
    finished_units,
    manifest_of,
    record_failure,
    released_if_empty,
    write_unit,
)
from alignshared import (
    AlignError,
    Dataset,
    LevelEdges,
    LevelStatistics,
    Manifest,
    Parent,
    Reason,
    Reject,
    Storage,
)
from alignshared.levels import levels_to_json
from alignshared.manifest import LEVELS_FILE
from alignshared.schema import SCORE_COLUMN
from alignshared.stores.lock import check_held

MAX_FAILURES_IN_A_ROW = 32
"""After this many consecutive failures, stop: the environment is at fault, not the data."""

_NAMED_FAILURES = 3

log = logging.getLogger("aligncurate")

Outcomes = Iterator[UnitRecord | UnitFailure]


class UnitRun:
    """Units of one run, finished or remaining, for shards of `schema`.

    `retry_failed` retries units that failed in earlier runs, `skip_failed` turns rows of those
    that fail into rejects.
    """

    def __init__(
        self,
        output: Storage,
        units: Sequence[Unit],
        schema: pa.Schema,
        *,
        retry_failed: bool = False,
        skip_failed: bool = False,
    ) -> None:
        self._output, self._units, self._schema, self._skip = output, units, schema, skip_failed
        self._records = {record.index: record for record in finished_units(output)}
        if retry_failed:
            output.delete(FAILURES_FOLDER)
        failures = failed_units(output).items()
        self._failures = {index: f for index, f in failures if index not in self._records}

    @property
    def total(self) -> int:
        """Rows of all units."""
        return sum(unit.rows for unit in self._units)

    @property
    def rows_done(self) -> int:
        """Rows of finished units."""
        return sum(record.rows_in for record in self._records.values())

    @property
    def to_do(self) -> list[Unit]:
        """Units that are neither finished nor failed."""
        settled = self._records.keys() | self._failures.keys()
        return [unit for unit in self._units if unit.index not in settled]

    def run(self, work: Callable[[list[Unit]], Outcomes]) -> list[UnitRecord]:
        """Process the remaining units with `work`; return the records of all units, in order.

        Raises:
            AlignError: units failed and are not to be skipped; or the run cannot continue.
        """
        if to_do := self.to_do:
            self._take(work(to_do))
        if self._failures and not self._skip:
            raise AlignError(self._failure_message())
        for unit in self._units:
            if unit.index in self._failures:
                self._records[unit.index] = self._write_skipped(unit)
        return [self._records[unit.index] for unit in self._units]

    def _take(self, outcomes: Outcomes) -> None:
        consecutive = 0
        for outcome in outcomes:
            check_held(self._output)
            if isinstance(outcome, UnitRecord):
                self._records[outcome.index] = outcome
                consecutive = 0
                continue
            self._failures[outcome.index] = outcome
            record_failure(self._output, outcome)
            log.warning("%s failed: %s", self._name(outcome.index), outcome.reason)
            consecutive += 1
            if consecutive == MAX_FAILURES_IN_A_ROW:
                raise AlignError(
                    f"{consecutive} units failed one after another, the last one, "
                    f"{self._name(outcome.index)}, for this: {outcome.reason.rstrip('.')}; fix "
                    "that, and run the same command with --retry-failed."
                )

    def _write_skipped(self, unit: Unit) -> UnitRecord:
        """Write an empty shard and a reject for each row of `unit`; return the record."""
        detail = self._failures[unit.index].reason
        rejects = [
            Reject(f"{unit.index:07d}-{unit.first + row:09d}", None, Reason.UNIT_FAILED, detail)
            for row in range(unit.rows)
        ]
        batch = FinishedBatch(self._schema.empty_table(), rejects, Timing())
        return write_unit(self._output, unit.index, self._schema, [batch])

    def _failure_message(self) -> str:
        failures = [self._failures[index] for index in sorted(self._failures)]
        named = "; ".join(
            f"{self._name(f.index)}: {f.reason.rstrip('.')}" for f in failures[:_NAMED_FAILURES]
        )
        more = len(failures) - _NAMED_FAILURES
        rows = sum(unit.rows for unit in self._units if unit.index in self._failures)
        return (
            f"{len(failures)} of {len(self._units)} units failed and the others are finished in "
            f"{self._output.location} ({named}{f'; and {more} more' if more > 0 else ''}); run the "
            "same command with --retry-failed to try them again, or with --skip-failed to make "
            f"their {rows:,} rows rejects."
        )

    def _name(self, index: int) -> str:
        """Name of a unit in messages: its number and rows of its file, counted from 1."""
        unit = next(unit for unit in self._units if unit.index == index)
        rows = f"rows {unit.first + 1:,} to {unit.first + unit.rows:,}"
        return f"unit {index} ({rows} of {posixpath.basename(unit.file)})"


class Numbered(Protocol):
    """Something with the number of a part of the result."""

    @property
    def index(self) -> int: ...


class Part(Numbered, Protocol):
    """A part of the result, and the number of input rows it covers."""

    @property
    def rows(self) -> int: ...


AnyPart = TypeVar("AnyPart", bound=Part)
AnyRecord = TypeVar("AnyRecord", bound=Numbered)


def write_parts(
    output: Storage,
    parts: Sequence[AnyPart],
    finished: Iterable[AnyRecord],
    write: Callable[[AnyPart], AnyRecord],
    *,
    workers: int,
    on_progress: OnProgress,
) -> list[AnyRecord]:
    """Write the `parts` without a record of `finished` ones, on `workers` threads.

    Returns:
        The records of all parts, in order.
    """
    records = {record.index: record for record in finished}
    to_do = [part for part in parts if part.index not in records]
    on_progress(sum(part.rows for part in parts) - sum(part.rows for part in to_do))
    for part, record in zip(to_do, map_ordered(write, to_do, workers), strict=True):
        check_held(output)
        records[part.index] = record
        rejects = record.reject_count if isinstance(record, UnitRecord) else 0
        on_progress(part.rows, rejects)
    return [records[part.index] for part in parts]


@contextmanager
def required_unit(read: str) -> Generator[None, None, None]:
    """Raise the failure of a unit in the block as one of the run; `read` names its first shard."""
    try:
        yield
    except UnitError as error:
        if isinstance(error.__cause__, AlignError):
            raise error.__cause__ from None
        raise AlignError(
            f"{read} cannot be copied: {error}; run the same command to resume."
        ) from error


def write_dataset(
    output: Storage, config: dict[str, Any], write: Callable[[], Manifest], *, overwrite: bool
) -> Dataset:
    """Return the dataset in `output` if a run of `config` has finished it, else write it with
    `write`.

    Raises:
        InputError: `output` holds something else, or is not writable.
        AlignError: another run is writing there, or `write` raises it.
    """
    if open_output(output, config, overwrite=overwrite) is OutputState.FINISHED:
        log.info("%s is finished already; nothing to do.", output.location)
        return Dataset(output.location)
    with released_if_empty(output):
        return finish(output, write())


def derived_manifest(
    stage: str,
    dataset: Dataset,
    output: Storage,
    config: dict[str, Any],
    records: list[UnitRecord],
    edges: LevelEdges | None,
    statistics: list[LevelStatistics] | None,
) -> Manifest:
    """Manifest, unwritten, of the dataset whose units `records` were made from `dataset`; write
    the file of levels, if any.
    """
    if edges and statistics:
        output.write_json(LEVELS_FILE, levels_to_json(edges, statistics))
    parent = dataset.manifest
    return manifest_of(
        stage,
        config,
        Parent(dataset.location, dataset.digest),
        records,
        model=parent.model,
        models=parent.models,
        scheme=edges.scheme if edges else None,
        edges=list(edges.edges) if edges else None,
        by=edges.by if edges and edges.by != SCORE_COLUMN else None,
        level_statistics=statistics,
        left_out=parent.rows - sum(record.rows_in for record in records),
    )
