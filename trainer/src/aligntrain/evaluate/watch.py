"""How far a benchmark is: a bar on a terminal, a plain line now and then in a log."""

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0
One = TypeVar("One")


def watched(items: Iterable[One], title: str, total: int, console: Console | None) -> Iterator[One]:
    """`items`, `total` of them, their passing shown on `console`; None: nowhere."""
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
