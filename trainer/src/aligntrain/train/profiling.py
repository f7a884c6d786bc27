"""Profile of a few steps: `aligntrain run ... --profile N`."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alignshared import atomic

if TYPE_CHECKING:
    from torch.autograd.profiler_util import EventList
    from torch.profiler import profile

log = logging.getLogger("aligntrain")

TABLE = "profile.txt"
TRACE = "profile.json.gz"

PARTS = ("data", "forward", "backward", "optimizer")
"""Parts of a step, marked by the trainer with `part`."""

_PREFIX = "step: "
_WARM_UP = 3
_ROWS = 30


def part(name: str) -> AbstractContextManager[object]:
    """Return a context that marks the part `name` of a step."""
    from torch.profiler import record_function

    return record_function(_PREFIX + name)


@contextmanager
def profiling(folder: Path, steps: int | None, remaining: int) -> Iterator[Callable[[], None]]:
    """Profile `steps` of this process's `remaining` steps (None: no step); yield a callback for
    the end of each.

    The first steps are skipped, if there are enough, and one is a warm-up. A table of the longest
    operations and a trace in Chrome's format are written to `folder`.
    """
    if steps is None or remaining < 1:
        yield lambda: None
        return
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    kinds = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(ProfilerActivity.CUDA)
    active = max(1, min(steps, remaining - 1))
    skipped = min(_WARM_UP, remaining - active)
    with warnings.catch_warnings():
        # For a run of one step, torch warns that there is no warm-up.
        warnings.simplefilter("ignore")
        when = schedule(wait=max(0, skipped - 1), warmup=min(1, skipped), active=active, repeat=1)
    done = profile(
        activities=kinds,
        schedule=when,
        on_trace_ready=lambda profiled: _write(folder, profiled, active),
        acc_events=True,
    )
    with done:
        yield done.step


def _write(folder: Path, profiled: "profile", steps: int) -> None:
    trace, table = folder / TRACE, folder / TABLE
    with atomic.file(trace) as unfinished:
        profiled.export_chrome_trace(os.fspath(unfinished))
    atomic.write(table, _table(profiled.key_averages(), steps))
    log.info(
        "profile of %d steps: %s, and %s for https://ui.perfetto.dev or chrome://tracing.",
        steps,
        table,
        trace,
    )


def _table(events: "EventList", steps: int) -> str:
    """Return the time by part of a step, then by operation, the longest first."""
    by_name = {event.key: event for event in events}
    on_gpu = any(event.device_time_total for event in events)
    lines = [f"{steps} steps on rank 0, milliseconds a step", ""]
    for name in PARTS:
        event = by_name.get(_PREFIX + name)
        if event is not None:
            own = f"{name:<12}{event.cpu_time_total / 1e3 / steps:>12,.2f} on the CPU"
            gpu = f"{event.device_time_total / 1e3 / steps:>12,.2f} on the GPU" if on_gpu else ""
            lines.append(own + gpu)
    longest = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rest = events.table(sort_by=longest, row_limit=_ROWS, max_name_column_width=60)
    return "\n".join([*lines, "", rest, ""])
