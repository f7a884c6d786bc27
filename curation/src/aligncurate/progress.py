"""Progress of a stage: counts, rate and rejects on a bar, or in occasional lines of a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

from alignshared.console import progress


class OnProgress(Protocol):
    """Progress callback: numbers of pairs newly done and, of those, rejected."""

    def __call__(self, done: int, rejects: int = 0) -> None: ...


def silent(done: int, rejects: int = 0) -> None:
    """Default OnProgress of library calls; shows nothing."""


@contextmanager
def showing(
    task: str, total: int | None, unit: str, console: Console, begun: int = 0
) -> Iterator[OnProgress]:
    """Show progress of `task` over `total` pairs, `begun` of them done by an earlier run."""
    meter = _Meter(unit)
    of = f" of {total:,}" if total is not None else ""
    with progress(task, total, console, begun=begun) as show:

        def report(done: int, rejects: int = 0) -> None:
            meter.add(done, rejects)
            counted, state = begun + meter.done, str(meter)
            line = f"{task}: {counted:,}{of} {unit}"
            show(counted, state, f"{line}, {state}" if state else line)

        yield report


class _Meter:
    """Counts and rate since the first report, excluding start-up time."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._first: tuple[float, int] | None = None
        self.done = 0
        self.rejects = 0

    def add(self, done: int, rejects: int) -> None:
        self.done += done
        self.rejects += rejects
        self._first = self._first or (time.monotonic(), self.done)

    @property
    def rate(self) -> float:
        """Pairs per second since the first report; 0 before the second."""
        if self._first is None:
            return 0.0
        began, already = self._first
        elapsed = time.monotonic() - began
        return (self.done - already) / elapsed if elapsed > 0 else 0.0

    def __str__(self) -> str:
        rate = f"{self.rate:,.0f} {self._unit}/s" if self.rate else ""
        rejects = f"{self.rejects:,} rejects" if self.rejects else ""
        return ", ".join(filter(None, (rate, rejects)))
