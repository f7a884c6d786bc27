"""Threads of this process: how many, `map` on them in order, and the heartbeat of their work."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from aligncurate.settings import require_at_least

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(workers: int | None) -> int:
    """The value of --workers, or one thread for each core.

    Raises:
        InputError: it is below 1.
    """
    require_at_least(1, workers=workers)
    return workers or available_cores()


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int = 1
) -> Iterator[Result]:
    """`map` on `workers` threads, with at most `workers + ahead` items begun and not yet taken.

    The first exception of `function` is raised here; items not begun by then are never begun.
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
    """Tell the listeners that work in this process makes progress."""
    for listener in _listeners:
        listener()


def on_heartbeat(listener: Callable[[], None]) -> None:
    """Call `listener` at every `heartbeat()` of this process."""
    _listeners.append(listener)
