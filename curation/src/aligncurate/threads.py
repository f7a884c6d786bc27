"""Running work on the threads of this process; results come back in the order of the work.

Work tells with `beat()` that it goes on; whoever watches over it (`on_beat`) knows then that it
does not hang.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def beat() -> None:
    """Tell those who watch over the work of this process that it goes on."""
    for listener in _listeners:
        listener()


def on_beat(listener: Callable[[], None]) -> None:
    """Have `listener` called at every `beat()` of this process."""
    _listeners.append(listener)


class Stalled(Exception):
    """Work in hand has made no progress for too long; its threads cannot be stopped and are left
    behind.
    """


def map_watched(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, timeout_s: float
) -> Iterator[Result]:
    """`map_ordered`, but the workers also take the items, one at a time, so that reading which
    hangs is noticed too.

    Raises:
        Stalled: the next result did not come within `timeout_s` seconds.
    """
    line = _Line(function, iter(items), workers + 1)
    threads = [threading.Thread(target=line.work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    stalled = False
    try:
        for number in count():
            failed, result = line.take(number, timeout_s)
            if failed:
                raise result
            if result is _END:
                return
            yield result
    except Stalled:
        stalled = True
        raise
    finally:
        line.stop()
        if not stalled:
            for thread in threads:
                thread.join()
            line.close()


_END = object()


class _Line(Generic[Item, Result]):
    """Items on their way through the workers of `map_watched`; at most `room` are begun and not
    taken.
    """

    def __init__(
        self, function: Callable[[Item], Result], items: Iterator[Item], room: int
    ) -> None:
        self._function, self._items = function, items
        self._room = threading.Semaphore(room)
        self._source = threading.Lock()
        self._begun = 0
        self._over = False
        self._done: dict[int, tuple[bool, Any]] = {}
        self._news = threading.Condition()

    def work(self) -> None:
        """What each worker does until there is no more."""
        while (taken := self._next()) is not None:
            number, item = taken
            try:
                outcome = False, self._function(item)
            except BaseException as error:  # noqa: BLE001 raised again by who takes it
                outcome = True, error
            self._put(number, outcome)

    def _next(self) -> tuple[int, Item] | None:
        self._room.acquire()
        with self._source:
            if self._over:
                self._room.release()
                return None
            number, self._begun = self._begun, self._begun + 1
            try:
                return number, next(self._items)
            except StopIteration:
                outcome = False, _END
            except BaseException as error:  # noqa: BLE001 raised again by who takes it
                outcome = True, error
            self._put(number, outcome)
            self.stop()
            return None

    def _put(self, number: int, outcome: tuple[bool, Any]) -> None:
        with self._news:
            self._done[number] = outcome
            self._news.notify_all()

    def take(self, number: int, timeout_s: float) -> tuple[bool, Any]:
        """Whether item `number` failed, and its result or error."""
        until = time.monotonic() + timeout_s
        with self._news:
            while number not in self._done:
                left = until - time.monotonic()
                if left <= 0:
                    raise Stalled
                self._news.wait(min(left, threading.TIMEOUT_MAX))
            self._room.release()
            return self._done.pop(number)

    def close(self) -> None:
        """Close what the items come from."""
        close: Callable[[], None] | None = getattr(self._items, "close", None)
        if close is not None:
            close()

    def stop(self) -> None:
        """Begin nothing more."""
        self._over = True
        self._room.release()  # one worker wakes, and each that ends wakes the next
