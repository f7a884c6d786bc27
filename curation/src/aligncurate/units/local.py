"""Units on the threads of this process.

Batches of all units share one queue of workers, so that few units still keep all cores busy;
shards are written as their batches arrive, in order. Workers also fetch the items, so that a
hanging read is detected.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Event, Lock, Semaphore, Thread
from typing import Any, TypeVar

import pyarrow as pa

from aligncurate.settings import UNIT_TIMEOUT_S, OnProgress
from aligncurate.sources import RawBatch, Unit
from aligncurate.units.records import (
    RETRY_PAUSE_S,
    UNIT_ATTEMPTS,
    FinishedBatch,
    OutputError,
    Stalled,
    UnitError,
    UnitFailure,
    UnitRecord,
    write_unit,
)
from aligncurate.units.run import Outcomes
from alignshared import Storage

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ThreadStep:
    """A function from batch to batch, and its number of threads."""

    function: Callable[[Any], Any]
    threads: int


@dataclass(frozen=True, slots=True)
class UnitPipeline:
    """Work on each unit: `read` yields batches, `steps` turn them into FinishedBatches of `schema`,
    which are written to `output`.
    """

    read: Callable[[Unit], Iterator[RawBatch]]
    steps: Sequence[ThreadStep]
    schema: pa.Schema
    output: Storage
    timeout_s: float = UNIT_TIMEOUT_S


def run_in_process(
    pipeline: UnitPipeline, units: Iterable[Unit], on_progress: OnProgress
) -> Outcomes:
    """Run `units` through `pipeline`; yield the record or failure of each, in order.

    A failed unit is retried from its start. A stalled one fails at once and its threads are
    abandoned, since they cannot be stopped.

    Raises:
        AlignError: the output is not writable.
    """
    remaining = deque(units)
    attempt = 1
    while remaining:
        try:
            for record in _records(pipeline, list(remaining), on_progress):
                remaining.popleft()
                attempt = 1
                yield record
            return
        except Stalled:
            timeout = f"{pipeline.timeout_s:g}"
            reason = f"no progress for {timeout} seconds; a file or server does not answer"
        except (UnitError, OutputError) as error:
            final = isinstance(error, OutputError) and error.lasting
            if not final and attempt < UNIT_ATTEMPTS:
                time.sleep(RETRY_PAUSE_S * 2 ** (attempt - 1))
                attempt += 1
                continue
            if isinstance(error, OutputError):
                raise
            reason = str(error)
        attempt = 1
        yield UnitFailure(remaining.popleft().index, reason)


def _records(
    pipeline: UnitPipeline, units: list[Unit], on_progress: OnProgress
) -> Iterator[UnitRecord]:
    """Yield the records of `units` until one fails."""
    line: Any = _read(pipeline, units)
    for step in pipeline.steps:
        line = _map_watched(_except_ends(step.function), line, step.threads, pipeline.timeout_s)
    with closing(line):
        for unit in units:
            batches: Iterator[FinishedBatch] = iter(line.__next__, None)
            yield write_unit(
                pipeline.output, unit.index, pipeline.schema, batches, on_progress=on_progress
            )


def _read(pipeline: UnitPipeline, units: list[Unit]) -> Generator[RawBatch | None, None, None]:
    """Yield the batches of each unit, then None."""
    for unit in units:
        yield from pipeline.read(unit)
        yield None


def _except_ends(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda batch: None if batch is None else function(batch)


def _map_watched(
    function: Callable[[Item], Result],
    items: Generator[Item, None, None],
    workers: int,
    timeout_s: float,
) -> Iterator[Result]:
    """`map` on `workers` threads, in order, with at most `workers + 1` items in hand.

    Raises:
        Stalled: the next result did not come within `timeout_s` seconds.
    """
    line = _Line(function, items, Semaphore(workers + 1))
    threads = [Thread(target=line.work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    stalled = False
    try:
        while True:
            outcome = line.begun.get()
            if not wait([outcome], min(timeout_s, TIMEOUT_MAX)).done:
                raise Stalled
            line.room.release()
            if outcome.result() is _END:
                return
            yield outcome.result()
    except Stalled:
        stalled = True
        raise
    finally:
        line.stop()
        if not stalled:
            for thread in threads:
                thread.join()
            items.close()


_END = object()


class _Line:
    """Items in the workers of `_map_watched`, with the `room` for more."""

    def __init__(
        self, function: Callable[[Any], Any], items: Iterator[Any], room: Semaphore
    ) -> None:
        self._function, self._items, self.room = function, items, room
        self._source, self._over = Lock(), Event()
        self.begun: SimpleQueue[Future[Any]] = SimpleQueue()

    def work(self) -> None:
        """Worker loop: take an item, keep its result or error, until none is left."""
        while True:
            self.room.acquire()
            outcome: Future[Any] = Future()
            with self._source:
                if self._over.is_set():
                    break
                self.begun.put(outcome)
                try:
                    item = next(self._items)
                except StopIteration:
                    outcome.set_result(_END)
                    break
                except BaseException as error:  # noqa: BLE001 raised again by the consumer
                    outcome.set_exception(error)
                    break
            try:
                outcome.set_result(self._function(item))
            except BaseException as error:  # noqa: BLE001 raised again by the consumer
                outcome.set_exception(error)
        self.stop()

    def stop(self) -> None:
        """Start no further items."""
        self._over.set()
        self.room.release()  # wakes one worker, and each that ends wakes the next
