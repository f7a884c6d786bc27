"""Command output: results on stdout; log, progress and errors on stderr."""

import os
from typing import TYPE_CHECKING

from rich.text import Text

from alignshared.console import near as near
from alignshared.console import notes as notes
from alignshared.console import results as results
from alignshared.console import section, table

if TYPE_CHECKING:
    from rich.table import Table

    from aligncurate.reporting.inspection import Inspection
    from aligncurate.stages.validate import Validation
    from alignshared import Dataset


def show_scored(dataset: "Dataset") -> None:
    """Print the location and counts of the scored pairs, and the next command."""
    _show_sum(dataset, "pairs", "scored")
    show_next("bucket --levels 8", dataset.location)


def show_ingested(dataset: "Dataset") -> None:
    """Print the location and counts of the ingested records."""
    _show_sum(dataset, "records", "ingested")


def _show_sum(dataset: "Dataset", what: str, done: str) -> None:
    manifest = dataset.manifest
    results.print(
        f"{near(dataset.location)}: {manifest.rows + manifest.reject_count:,} {what} in = "
        f"{manifest.rows:,} {done} + {manifest.reject_count:,} rejects"
    )
    for reason, count in manifest.rejects.items():
        results.print(f"  {count:,} {reason}")


def show_levels(found: "Inspection") -> None:
    """Print the table of levels, best aligned first."""
    results.print(
        f"{near(found.location)}: {found.rows:,} pairs in {len(found.levels)} levels"
        + (f", {found.reject_count:,} rejects" if found.rejects else "")
    )
    results.print(_level_table(found))
    show_next("report", found.location)


def show_files(files: list[str | None]) -> None:
    """Print one line for each written file."""
    for file in files:
        if file is not None:
            results.print(near(file))


def show_inspection(found: "Inspection") -> None:
    """Print the full description of a dataset, section by section."""
    from aligncurate.reporting.format import flat_config
    from aligncurate.reporting.inspection import facts, lineage_rows, reject_rows

    results.print(_columns(facts(found)))
    section("columns", _columns([(column.name, column.type) for column in found.columns]))
    if found.levels:
        section("levels", _level_table(found))
    for title, rows in (
        ("rejects", reject_rows(found)),
        ("configuration", flat_config(found.config)),
        ("lineage", lineage_rows(found)),
    ):
        if rows:
            section(title, _columns(rows))


def show_validation(found: "Validation") -> None:
    """Print a dataset's problems, one per line, or that there are none."""
    where = near(found.location)
    for problem in found.problems:
        results.print(str(problem))
    if found.ok:
        results.print(
            f"{where} keeps the contract: {found.rows:,} pairs in {found.shards:,} shards, "
            f"{found.rejects:,} rejects"
        )
    else:
        results.print(f"{where} does not keep the contract: {found.problem_count:,} problems")


def _level_table(found: "Inspection") -> "Table":
    from aligncurate.reporting.inspection import LEVEL_HEADINGS, level_rows

    levels = table(*LEVEL_HEADINGS, left=0)
    for row in level_rows(found):
        levels.add_row(*row)
    return levels


def _columns(rows: list[tuple[str, str]]) -> Text:
    """Print names and values; values are never cut, so that digests and paths can be copied."""
    width = max((len(name) for name, _ in rows), default=0)
    lines = [
        Text(f"{name:<{width}}  ", style="dim").append(value, "default") for name, value in rows
    ]
    return Text("\n").join(lines)


def show_next(command: str, location: str) -> None:
    """Print the next command, without --input if `location` is its default."""
    from aligncurate.output.locations import DATA_ROOT

    here = near(location)
    found = here.startswith(f"{DATA_ROOT}{os.sep}")
    notes.print(f"next: aligncurate {command}" + ("" if found else f" --input {here}"))
