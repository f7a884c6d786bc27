"""A run over units: those that are left to do, what becomes of each, and what of those that fail.

A unit that fails is recorded and the others go on. The run then ends with one sentence, and there
is no dataset yet: `retry` tries failed units again, `skip` makes their rows rejects. Runs without
either leave failed units alone, since one that kills its workers would do so at every start.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from aligncurate.output.lock import check_held
from aligncurate.sources import Unit
from aligncurate.units.records import (
    FinishedBatch,
    Timing,
    UnitFailure,
    UnitRecord,
    failed_units,
    finished_units,
    forget_failures,
    record_failure,
    unit_name,
    write_unit,
)
from alignshared import AlignError, Reason, Reject, Storage

MAX_FAILURES_IN_A_ROW = 32
"""Where so many units fail one after another, it is not the units."""

_NAMED = 3

log = logging.getLogger("aligncurate")

Outcomes = Iterator[UnitRecord | UnitFailure]


@dataclass(frozen=True, slots=True)
class Failed:
    """What to do with units that failed: `retry` those of earlier runs, `skip` those that fail."""

    retry: bool = False
    skip: bool = False


class UnitRun:
    """The units of one run: what earlier runs finished, and what is left.

    `schema` is that of the shards.
    """

    def __init__(
        self, output: Storage, units: Sequence[Unit], schema: pa.Schema, failed: Failed
    ) -> None:
        self._output, self._units, self._schema, self._policy = output, units, schema, failed
        self._records = {record.index: record for record in finished_units(output)}
        if failed.retry:
            forget_failures(output)
        self._failures = {
            index: failure
            for index, failure in failed_units(output).items()
            if index not in self._records
        }

    @property
    def total(self) -> int:
        """Rows of all units."""
        return sum(unit.rows for unit in self._units)

    @property
    def begun(self) -> int:
        """Rows that are done."""
        return sum(record.rows_in for record in self._records.values())

    @property
    def to_do(self) -> list[Unit]:
        """The units that are neither finished nor failed."""
        settled = self._records.keys() | self._failures.keys()
        return [unit for unit in self._units if unit.index not in settled]

    def run(self, work: Callable[[list[Unit]], Outcomes]) -> list[UnitRecord]:
        """Have `work` do what is to do; the records of all units, in order.

        Raises:
            AlignError: units failed and are not to be skipped; or the run cannot go on.
        """
        to_do = self.to_do
        if to_do:
            self._take(work(to_do))
        if self._failures and not self._policy.skip:
            raise AlignError(self._sentence())
        for unit in self._units:
            if unit.index in self._failures:
                self._records[unit.index] = self._leave_out(unit)
        return [self._records[unit.index] for unit in self._units]

    def _take(self, outcomes: Outcomes) -> None:
        in_a_row = 0
        for outcome in outcomes:
            check_held(self._output)
            if isinstance(outcome, UnitRecord):
                self._records[outcome.index] = outcome
                in_a_row = 0
                continue
            self._failures[outcome.index] = outcome
            record_failure(self._output, outcome)
            log.warning("%s failed: %s", self._name(outcome.index), outcome.reason)
            in_a_row += 1
            if in_a_row == MAX_FAILURES_IN_A_ROW:
                raise AlignError(
                    f"{in_a_row} units failed one after another, the last one, "
                    f"{self._name(outcome.index)}, for this: {_open(outcome.reason)}; mend that, "
                    "and run the same command with --retry-failed."
                )

    def _leave_out(self, unit: Unit) -> UnitRecord:
        """The record of an empty shard, and a reject for each row of `unit`."""
        detail = self._failures[unit.index].reason
        rejects = [
            Reject(f"{unit.index:07d}-{unit.first + row:09d}", None, Reason.UNIT_FAILED, detail)
            for row in range(unit.rows)
        ]
        batch = FinishedBatch(self._schema.empty_table(), rejects, Timing())
        return write_unit(self._output, unit.index, self._schema, [batch])

    def _sentence(self) -> str:
        failures = [self._failures[index] for index in sorted(self._failures)]
        named = "; ".join(f"{self._name(f.index)}: {_open(f.reason)}" for f in failures[:_NAMED])
        more = len(failures) - _NAMED
        rows = sum(unit.rows for unit in self._units if unit.index in self._failures)
        return (
            f"{len(failures)} of {len(self._units)} units failed and the others are finished in "
            f"{self._output.location} ({named}{f'; and {more} more' if more > 0 else ''}); run the "
            "same command with --retry-failed to try them again, or with --skip-failed to make "
            f"their {rows:,} rows rejects."
        )

    def _name(self, index: int) -> str:
        unit = next(unit for unit in self._units if unit.index == index)
        return unit_name(unit.index, unit.file, unit.first, unit.rows)


def _open(sentence: str) -> str:
    return sentence.rstrip(".")
