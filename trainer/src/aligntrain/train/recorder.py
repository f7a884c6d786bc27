"""Writes the lines of a run: `metrics.jsonl`, and the same numbers to its trackers."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntrain.runs.folder import METRICS
from aligntrain.train.loggers import Tracker
from aligntrain.train.metrics import read_metrics


class Recorder:
    """Writes to `metrics.jsonl` in `folder` and to `trackers`.

    Lines of steps after `step`, which a run wrote before it was killed, are taken out: those steps
    come again.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = folder / METRICS
        _cut(self._path, step)
        self._lines = self._path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, line: dict[str, Any]) -> None:
        """Record `line`, which has a `step`."""
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        scalars = {name: value for name, value in _scalars(line) if name != "step"}
        for tracker in self._trackers:
            tracker.write(scalars, line["step"])

    def close(self) -> None:
        """End the file and the trackers."""
        self._lines.close()
        for tracker in self._trackers:
            tracker.close()


def _cut(path: Path, step: int) -> None:
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(unfinished, path)


def _scalars(value: Any, name: str = "") -> list[tuple[str, float]]:
    """The numbers in `value` by names with slashes; a list counts from 1, as levels do."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = ((str(place), item) for place, item in enumerate(value, start=1))
    else:
        return [] if value is None else [(name, float(value))]
    inside = f"{name}/" if name else ""
    return [scalar for key, item in items for scalar in _scalars(item, f"{inside}{key}")]
