"""Threads of this process: their number, an ordered `map`, and a heartbeat."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from aligncurate.settings import require_at_least

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores available to this process; in a container fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(workers: int | None) -> int:
    """Return --workers, or one thread per core.

    Raises:
        InputError: it is below 1.
    """
    require_at_least(1, workers=workers)
    return workers or available_cores()


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int = 1
) -> Iterator[Result]:
    """`map` on `workers` threads, with at most `workers + ahead` items in flight.

    The first exception of `function` is raised here; no further items are started.
    """
    with ThreadPoolExecutor(workers) as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) >= workers + ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


_listeners: list[Callable[[], None]] = []


def heartbeat() -> None:
    """Notify the listeners of progress in this process."""
    for listener in _listeners:
        listener()


def on_heartbeat(listener: Callable[[], None]) -> None:
    """Call `listener` at every `heartbeat()` of this process."""
    _listeners.append(listener)
