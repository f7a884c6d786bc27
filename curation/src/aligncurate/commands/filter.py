"""`aligncurate filter`."""

from typing import TYPE_CHECKING, Annotated

import typer

from aligncurate import terminal
from aligncurate.commands.options import (
    DatasetOption,
    OutputOption,
    OverwriteOption,
    StorageOption,
    dataset_at,
)

if TYPE_CHECKING:
    from aligncurate.stages.filter import ConditionCount


def filter(
    input: DatasetOption = None,
    output: OutputOption = None,
    min_score: Annotated[float | None, typer.Option(help="Least score to keep.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Greatest score to keep.")] = None,
    levels: Annotated[
        str | None, typer.Option(help="Levels to keep, such as 3-8 or 1,5-8.")
    ] = None,
    top: Annotated[
        float | None,
        typer.Option(help="Share of all pairs to keep, best scores first; equal scores too."),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Least length of an image's shorter side, in pixels.")
    ] = None,
    max_aspect: Annotated[
        float | None, typer.Option(help="Greatest ratio of an image's longer to its shorter side.")
    ] = None,
    min_caption: Annotated[
        int | None, typer.Option(help="Least length of a caption, in characters.")
    ] = None,
    max_caption: Annotated[
        int | None, typer.Option(help="Greatest length of a caption, in characters.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="COLUMN=en,de: values of that column to keep.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition (DuckDB) on any columns of the dataset.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be kept; write nothing.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Threads; by default one per core.")] = None,
    overwrite: OverwriteOption = False,
    storage_options: StorageOption = None,
) -> None:
    """Keep the pairs that meet all of the conditions given; bounds are inclusive."""
    from aligncurate.progress import showing
    from aligncurate.selection.conditions import Conditions
    from aligncurate.stages.filter import (
        FILTERED_STAGES,
        condition_counts,
        count_filter,
        filter,
    )

    conditions = Conditions(
        min_score=min_score, max_score=max_score, levels=levels, top=top,
        min_size=min_size, max_aspect=max_aspect,
        min_caption=min_caption, max_caption=max_caption,
        language=language, where=where,
    )  # fmt: skip
    source = dataset_at(input, *FILTERED_STAGES)
    rows = source.manifest.rows
    if dry_run:
        with showing("filter", rows, "pairs", terminal.notes) as on_progress:
            counts = count_filter(
                conditions, source.location, workers=workers, on_progress=on_progress
            )
        _show(f"{terminal.near(counts.location)}, dry run", counts.rows, counts.kept, "")
        _show_conditions(counts.conditions)
        _show_levels(counts.levels)
        return
    with showing("filter", 2 * rows, "pairs", terminal.notes) as on_progress:
        dataset = filter(
            conditions, source.location, output,
            workers=workers, overwrite=overwrite, on_progress=on_progress,
        )  # fmt: skip
    manifest = dataset.manifest
    pairs = manifest.rows + manifest.left_out
    rejects = f" + {manifest.reject_count:,} rejects"
    _show(terminal.near(dataset.location), pairs, manifest.rows, rejects)
    _show_conditions(condition_counts(dataset))


def _show(where: str, rows: int, kept: int, rejects: str) -> None:
    from aligncurate.reporting.format import share_text

    terminal.results.print(
        f"{where}: {rows:,} pairs in = {kept:,} kept ({share_text(kept / rows)}) + "
        f"{rows - kept:,} filtered out{rejects}"
    )


def _show_conditions(counts: "list[ConditionCount]") -> None:
    from aligncurate.reporting.format import clip_text

    _show_table(
        ("condition", "pairs that fail it", "that fail it alone"),
        [(clip_text(c.condition), f"{c.fail:,}", f"{c.fail_only_this:,}") for c in counts],
    )


def _show_levels(levels: list[tuple[int, int, int]]) -> None:
    if levels:
        rows = [(str(level), f"{kept:,}", f"{pairs:,}") for level, pairs, kept in levels]
        _show_table(("level", "kept", "of"), rows)


def _show_table(headings: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for first, *others in rows:
        table.add_row(Text(first), *others)
    terminal.results.print(table)
