"""Command output: results on stdout; log, progress and errors on stderr."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.text import Text

from aligncurate.settings import OnProgress
from alignshared.console import near as near
from alignshared.console import notes as notes
from alignshared.console import progress, section, table
from alignshared.console import results as results

if TYPE_CHECKING:
    from rich.table import Table

    from aligncurate.reporting.inspection import Inspection
    from aligncurate.reporting.sheet import SearchResult
    from aligncurate.stages.export import Export
    from aligncurate.stages.filter import ConditionCount, FilterCounts
    from aligncurate.stages.validate import Validation
    from alignshared import Dataset


@contextmanager
def showing(task: str, total: int | None, unit: str, begun: int = 0) -> Iterator[OnProgress]:
    """Show progress of `task` over `total` pairs, `begun` of them done by an earlier run."""
    counted, rejected = begun, 0
    first: tuple[float, int] | None = None  # the rate excludes start-up time
    of = f" of {total:,}" if total is not None else ""
    with progress(task, total, notes, begun=begun) as show:

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


def show_scored(dataset: "Dataset") -> None:
    """Print the location and counts of the scored pairs, and the next command."""
    show_sum(dataset, "pairs", "scored")
    _show_next("bucket --levels 8", dataset.location)


def show_sum(dataset: "Dataset", what: str, done: str) -> None:
    """Print the location of a dataset and the counts of its rows and rejects."""
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
    _show_next("report", found.location)


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


def show_filtered(dataset: "Dataset") -> None:
    """Print the number of pairs kept, and those that each condition drops."""
    from aligncurate.stages.filter import condition_counts

    manifest = dataset.manifest
    pairs, rejects = manifest.rows + manifest.left_out, f" + {manifest.reject_count:,} rejects"
    _show_kept(near(dataset.location), pairs, manifest.rows, rejects)
    _show_conditions(condition_counts(dataset))


def show_filter_counts(counts: "FilterCounts") -> None:
    """Print what a filter would keep, in total and per level, and what each condition drops."""
    _show_kept(f"{near(counts.location)}, dry run", counts.rows, counts.kept)
    _show_conditions(counts.conditions)
    if counts.levels:
        rows = [(str(level), f"{kept:,}", f"{pairs:,}") for level, pairs, kept in counts.levels]
        results.print(_filled(table("level", "kept", "of"), rows))


def _show_kept(where: str, rows: int, kept: int, rejects: str = "") -> None:
    from aligncurate.reporting.format import share_text

    results.print(
        f"{where}: {rows:,} pairs in = {kept:,} kept ({share_text(kept / rows)}) + "
        f"{rows - kept:,} filtered out{rejects}"
    )


def _show_conditions(counts: "list[ConditionCount]") -> None:
    from aligncurate.reporting.format import clip_text

    headings = ("condition", "pairs that fail it", "that fail it alone")
    rows = [(clip_text(c.condition), f"{c.fail:,}", f"{c.fail_only_this:,}") for c in counts]
    results.print(_filled(table(*headings), rows))


def show_sample(dataset: "Dataset") -> None:
    """Print the number of pairs drawn, in total and per level."""
    from aligncurate.stages.sample import drawn_by_level

    manifest = dataset.manifest
    results.print(
        f"{near(dataset.location)}: {manifest.rows + manifest.left_out:,} pairs in = "
        f"{manifest.rows:,} drawn + {manifest.left_out:,} not drawn + "
        f"{manifest.reject_count:,} rejects"
    )
    if levels := drawn_by_level(dataset)[::-1]:
        rows = [(str(level), f"{drawn:,}", f"{pairs:,}") for level, drawn, pairs in levels]
        results.print(_filled(table("level", "drawn", "of", left=0), rows))


def show_deduplicated(dataset: "Dataset") -> None:
    """Print the number of pairs kept, and how many duplicates they stand for."""
    manifest = dataset.manifest
    found, where = manifest.duplicates, near(dataset.location)
    assert found is not None  # other stages' datasets were refused before
    results.print(
        f"{where}: {manifest.rows + manifest.left_out:,} pairs in = {manifest.rows:,} kept + "
        f"{manifest.left_out:,} duplicates + {manifest.reject_count:,} rejects"
    )
    results.print(f"  {found.exact:,} exact, {found.near:,} near; see {where}/duplicates")
    if found.clusters:
        results.print(
            f"  {found.clusters:,} kept pairs stand for others, the most for {found.largest - 1:,}"
        )
    if found.search and found.search["method"] == "ivf":
        results.print(f"  {found.search['recall']:.1%} of near pairs found, on a sample")
    _show_next("report", dataset.location)


def show_hits(result: "SearchResult") -> None:
    """Print the table of the pairs found, nearest first."""
    from rich.table import Table

    from aligncurate.reporting.format import clip_middle, clip_text, score_text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("id", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("level", justify="right")
    table.add_column("caption")
    for hit in result.hits:
        table.add_row(
            str(hit.rank),
            score_text(hit.cosine),
            clip_middle(hit.id, 40),
            score_text(hit.score),
            "" if hit.level is None else str(hit.level),
            clip_text(hit.caption or "", 60),
        )
    results.print(table)


def show_export(written: "Export") -> None:
    """Print the size and location of the export."""
    from aligncurate.reporting.format import bytes_text, count_text

    size = sum(file.bytes for file in written.files)
    beside = f" and {count_text(written.pictures, 'picture')} beside" if written.pictures else ""
    results.print(
        f"{near(written.location)}: {count_text(written.rows, 'pair')} in "
        f"{count_text(len(written.files), 'file')}, {bytes_text(size)}{beside}"
    )
    if written.without_picture:
        results.print(f"  {written.without_picture:,} of them without a picture")


def _level_table(found: "Inspection") -> "Table":
    from aligncurate.reporting.inspection import LEVEL_HEADINGS, level_rows

    return _filled(table(*LEVEL_HEADINGS, left=0), level_rows(found))


def _filled(table: "Table", rows: Iterable[Sequence[str]]) -> "Table":
    for row in rows:
        table.add_row(*row)
    return table


def _columns(rows: list[tuple[str, str]]) -> Text:
    """Print names and values; values are never cut, so that digests and paths can be copied."""
    width = max((len(name) for name, _ in rows), default=0)
    lines = [
        Text(f"{name:<{width}}  ", style="dim").append(value, "default") for name, value in rows
    ]
    return Text("\n").join(lines)


def _show_next(command: str, location: str) -> None:
    """Print the next command, without --input if `location` is its default."""
    from aligncurate.output.folder import DATA_ROOT

    here = near(location)
    found = here.startswith(f"{DATA_ROOT}{os.sep}")
    notes.print(f"next: aligncurate {command}" + ("" if found else f" --input {here}"))
