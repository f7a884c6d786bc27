"""What the commands print: results on stdout, the log, progress and errors on stderr."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aligncurate.places import DATA_ROOT
from alignshared import Dataset

if TYPE_CHECKING:
    from aligncurate.stages.inspect import Inspection
    from aligncurate.stages.validate import Validation

results = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
progress = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        text = Text("warning: ", style="yellow") if warning else Text()
        progress.print(text.append(self.format(record), style="default"))


def show_log(level: int) -> None:
    """Have the package's log, from `level` up, go to stderr as plain sentences."""
    log = logging.getLogger("aligncurate")
    log.handlers = [_Log()]
    log.setLevel(level)
    log.propagate = False


def show_error(sentence: str) -> None:
    """Print what is wrong, where, and what to do."""
    progress.print(Text("error: ", style="bold red").append(sentence, style="default"))


def near(location: str) -> str:
    """`location` as one would type it here: relative if it lies below the current folder."""
    try:
        return os.fspath(Path(location).relative_to(Path.cwd()))
    except ValueError:
        return location


def show_scored(dataset: Dataset) -> None:
    """Where the scored pairs lie, that none is lost, and what to do next."""
    manifest = dataset.manifest
    pairs = manifest.rows + manifest.reject_count
    results.print(
        f"{near(dataset.location)}: {pairs:,} pairs in = {manifest.rows:,} scored + "
        f"{manifest.reject_count:,} rejects"
    )
    for reason, count in manifest.rejects.items():
        results.print(f"  {count:,} {reason}")
    _show_next("bucket --levels 8", dataset)


def show_levels(dataset: Dataset) -> None:
    """The table of levels, best aligned first."""
    manifest = dataset.manifest
    statistics = manifest.level_statistics or []
    table = Table("level", box=None, pad_edge=False, header_style="bold")
    for heading in ("pairs", "share", "mean", "least", "greatest"):
        table.add_column(heading, justify="right")
    for s in reversed(statistics):
        scores = ["" if x is None else f"{x:.4f}" for x in (s.mean, s.min, s.max)]
        table.add_row(str(s.level), f"{s.count:,}", f"{s.share:.1%}", *scores)
    results.print(
        f"{near(dataset.location)}: {manifest.rows:,} pairs in {len(statistics)} levels"
        + (f", {manifest.reject_count:,} rejects" if manifest.rejects else "")
    )
    results.print(table)
    _show_next("report", dataset)


def show_files(files: list[str | None]) -> None:
    """One line for each file that was written."""
    for file in files:
        if file is not None:
            results.print(near(file))


def _show_next(command: str, dataset: Dataset) -> None:
    """The command that takes `dataset` further; without --input where it finds it by itself."""
    here = near(dataset.location)
    found = here.startswith(f"{DATA_ROOT}{os.sep}")
    progress.print(f"next: aligncurate {command}" + ("" if found else f" --input {here}"))
