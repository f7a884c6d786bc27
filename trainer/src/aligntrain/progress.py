"""Progress of a run: a bar on a terminal, an occasional plain line in a log."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class Display:
    """Display of a run's steps on `console`, if any; `begun` of `total` were made before."""

    def __init__(self, console: Console | None, task: str, total: int, begun: int) -> None:
        self._console, self._task, self._total = console, task, total
        self._begun = begun
        self._began = self._last_line = time.monotonic()
        self._read = 0.0
        self._bar: Progress | None = None
        self._row: Any = None
        self._validation = ""

    @classmethod
    def silent(cls) -> Self:
        """Return a display that shows nothing."""
        return cls(None, "", 0, 0)

    @contextmanager
    def shown(self) -> Iterator[Self]:
        """Show the bar during the block, if on a terminal."""
        if self._console is None or not self._console.is_terminal:
            yield self
            return
        with _bar(self._console) as self._bar:
            self._row = self._bar.add_task(
                self._task, total=self._total, completed=self._begun, state="starting"
            )
            yield self

    def step(self, done: int, loss: float, read: float) -> None:
        """Show that `done` steps are made; the last had `loss` and read `read` tokens."""
        if self._console is None:
            return
        self._read += read
        now = time.monotonic()
        rate = self._read / max(now - self._began, 1e-9)
        state = f"loss {loss:.4f}{self._validation}, {rate:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._row, completed=done, state=state)
        elif now - self._last_line >= LINE_EVERY_S or done == self._total:
            self._last_line = now
            left = (self._total - done) * (now - self._began) / max(done - self._begun, 1)
            self._console.print(
                f"{self._task}: step {done:,} of {self._total:,}, {state}, {_duration(left)} left"
            )

    def validated(self, loss: float) -> None:
        """Show `loss` as the loss of the held-out rows."""
        self._validation = f" (held out {loss:.4f})"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


One = TypeVar("One")


def watched(items: Iterable[One], title: str, total: int, console: Console | None) -> Iterator[One]:
    """Yield `items`, `total` of them, showing progress on `console`, if any."""
    if console is None:
        yield from items
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        rate = TextColumn("{task.fields[rate]:.2g}/s")
        with Progress(*columns, rate, TimeRemainingColumn(), console=console) as bar:
            row = bar.add_task(title, total=total, rate=0.0)
            began = time.monotonic()
            for done, item in enumerate(items, start=1):
                yield item
                bar.update(row, completed=done, rate=done / max(time.monotonic() - began, 1e-9))
    else:
        yield from _lines(items, title, total, console)


def _lines(items: Iterable[One], title: str, total: int, console: Console) -> Iterator[One]:
    began = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            rate = done / (now - began)
            left = timedelta(seconds=round((total - done) / rate))
            console.print(f"{title}: {done:,} of {total:,}, {rate:.2g}/s, {left} left")
