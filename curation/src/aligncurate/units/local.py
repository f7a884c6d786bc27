"""Units worked on in the threads of this process.

All batches of all units go through one line of workers, so that few units keep all cores busy too;
each unit's shard is written as its batches come out, in order.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aligncurate.progress import OnProgress
from aligncurate.sources import RawBatch, Unit
from aligncurate.threads import Stalled, map_watched
from aligncurate.units.records import (
    UNIT_ATTEMPTS,
    FinishedBatch,
    OutputError,
    UnitError,
    UnitFailure,
    UnitRecord,
    write_unit,
)
from aligncurate.units.run import Outcomes
from alignshared import Storage

UNIT_TIMEOUT_S = 600.0
"""Seconds without progress after which a unit counts as failed."""

_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class LineStep:
    """A function from batch to batch and how many threads call it."""

    function: Callable[[Any], Any]
    threads: int


@dataclass(frozen=True, slots=True)
class Work:
    """What is done with each unit: `read` gives its batches, `steps` make them FinishedBatches of
    `schema`, and they are written to `output`.
    """

    read: Callable[[Unit], Iterator[RawBatch]]
    steps: Sequence[LineStep]
    schema: pa.Schema
    output: Storage
    timeout_s: float = UNIT_TIMEOUT_S


def work_in_process(work: Work, units: Iterable[Unit], on_progress: OnProgress) -> Outcomes:
    """Do `units`; yields the record of each as it is finished, or why it failed, in order.

    A unit that fails is tried again from its start. One that stalls fails at once, and its threads
    are left behind: nothing can stop them.

    Raises:
        AlignError: the output cannot be written to.
    """
    left = deque(units)
    attempt = 1
    while left:
        try:
            for record in _line(work, list(left), on_progress):
                left.popleft()
                attempt = 1
                yield record
            return
        except Stalled:
            reason = f"no progress for {work.timeout_s:g} seconds; a file or server does not answer"
        except UnitError as error:
            if attempt < UNIT_ATTEMPTS:
                attempt = _next(attempt)
                continue
            reason = str(error)
        except OutputError as error:
            if error.lasting or attempt == UNIT_ATTEMPTS:
                raise
            attempt = _next(attempt)
            continue
        attempt = 1
        yield UnitFailure(left.popleft().index, reason)


def _next(attempt: int) -> int:
    time.sleep(_PAUSE_S * 2 ** (attempt - 1))
    return attempt + 1


def _line(work: Work, units: list[Unit], on_progress: OnProgress) -> Iterator[UnitRecord]:
    """The records of `units`, until one of them fails."""
    line: Any = _read(work, units)
    for step in work.steps:
        line = map_watched(_except_ends(step.function), line, step.threads, work.timeout_s)
    with closing(line):
        for unit in units:
            batches: Iterator[FinishedBatch] = iter(line.__next__, None)
            yield write_unit(work.output, unit.index, work.schema, batches, on_progress)


def _read(work: Work, units: list[Unit]) -> Iterator[RawBatch | None]:
    """The batches of each unit, and None at its end."""
    for unit in units:
        yield from work.read(unit)
        yield None


def _except_ends(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda batch: None if batch is None else function(batch)
