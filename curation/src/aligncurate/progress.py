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
    counted, rejected = begun, 0
    first: tuple[float, int] | None = None  # the rate excludes start-up time
    of = f" of {total:,}" if total is not None else ""
    with progress(task, total, console, begun=begun) as show:

        def report(done: int, rejects: int = 0) -> None:
            nonlocal counted, rejected, first
            counted += done
            rejected += rejects
            first = first or (time.monotonic(), counted)
            began, already = first
            elapsed = time.monotonic() - began
            rate = (counted - already) / elapsed if elapsed > 0 else 0.0
            state = [f"{rate:,.0f} {unit}/s"] if rate else []
            state += [f"{rejected:,} rejects"] if rejected else []
            line = ", ".join([f"{task}: {counted:,}{of} {unit}", *state])
            show(counted, ", ".join(state), line)

        yield report
