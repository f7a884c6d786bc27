"""Code of the Ray workers: one item at a time through one step, reported to the ledger.

Only an AlignError ends the run. After any other error the item is retried here and then returned
as an `ItemFailure`. An item without progress kills its worker, since a thread hanging in a read
cannot be stopped; Ray then restarts the worker.
"""

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pyarrow as pa

from aligncurate.threads import on_heartbeat
from aligncurate.units.records import RETRY_PAUSE_S, UNIT_ATTEMPTS, OutputError, describe_error
from alignshared import AlignError

POSITION, ITEM = "position", "item"

_REPORT_EVERY_S = 5.0

Function = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Failure of the item at `position` of the list; `reason` is the cause."""

    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Bench:
    """Context of a worker: run, step, ledger and time-out."""

    run: str
    step: int
    ledger: Any
    timeout_s: float


class _Watch:
    """Thread that kills the worker when its item stops making progress."""

    def __init__(self, ledger: Any, timeout_s: float) -> None:
        self._ledger, self._timeout_s = ledger, timeout_s
        self._item: int | None = None
        self._moved = self._reported = time.monotonic()
        on_heartbeat(self.heartbeat)
        threading.Thread(target=self._look, daemon=True).start()

    def begin(self, item: int) -> None:
        self._item, self._moved = item, time.monotonic()

    def end(self) -> None:
        self._item = None

    def heartbeat(self) -> None:
        self._moved = time.monotonic()
        if self._moved - self._reported > _REPORT_EVERY_S:
            self._reported = self._moved
            self._ledger.heartbeat.remote()

    def _look(self) -> None:
        import ray

        while True:
            time.sleep(min(self._timeout_s / 4, 1.0))
            item = self._item
            if item is not None and time.monotonic() - self._moved > self._timeout_s:
                reason = f"no progress for {self._timeout_s:g} seconds on {socket.gethostname()}"
                ray.get(self._ledger.fail.remote(item, f"{reason}; a file or server hangs"))
                os.kill(os.getpid(), signal.SIGKILL)


_watches: dict[str, _Watch] = {}


def _watch(bench: Bench) -> _Watch:
    """Return this process's single watch for the run."""
    if bench.run not in _watches:
        _watches[bench.run] = _Watch(bench.ledger, bench.timeout_s)
    return _watches[bench.run]


def make_or_fail(make: Callable[[], Function]) -> Function:
    """Make the function of a step; on error, return one that answers every item with the error."""
    try:
        return make()
    except AlignError as error:
        failure = error
        return lambda _: failure


def call(function: Function, bench: Bench, batch: pa.Table) -> pa.Table:
    """Apply one step to the items in `batch`; return the results as a table."""
    positions = batch[POSITION].to_pylist()
    results = [
        _result(function, bench, position, item.as_py())
        for position, item in zip(positions, batch[ITEM], strict=True)
    ]
    pickled = pa.array([pickle.dumps(result) for result in results], pa.large_binary())
    return pa.table({POSITION: pa.array(positions, pa.int64()), ITEM: pickled})


def _result(function: Function, bench: Bench, position: int, pickled: bytes) -> Any:
    import ray

    item = pickle.loads(pickled)
    if isinstance(item, AlignError | ItemFailure):  # from the previous step
        return item
    reason: Any = ray.get(bench.ledger.begin.remote(position, bench.step, socket.gethostname()))
    if reason is not None:
        return ItemFailure(position, reason)
    watch = _watch(bench)
    watch.begin(position)
    try:
        result = _tried(function, position, item)
    finally:
        watch.end()
    if isinstance(result, ItemFailure):
        ray.get(bench.ledger.fail.remote(position, result.reason))
    else:
        ray.get(bench.ledger.end.remote(position, bench.step))
    return result


def _tried(function: Function, position: int, item: Any) -> Any:
    for attempt in count(1):
        try:
            return function(item)
        except AlignError as error:
            lasting = not isinstance(error, OutputError) or error.lasting
            if lasting or attempt == UNIT_ATTEMPTS:
                return error
        except Exception as error:  # noqa: BLE001 reported with the item's name
            if attempt == UNIT_ATTEMPTS:
                return ItemFailure(position, describe_error(error))
        time.sleep(RETRY_PAUSE_S * 2 ** (attempt - 1))
