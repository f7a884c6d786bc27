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
    from alignshared import Dataset


def filter(
    input: DatasetOption = None,
    output: OutputOption = None,
    min_score: Annotated[float | None, typer.Option(help="Least score that is kept.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Greatest score that is kept.")] = None,
    levels: Annotated[
        str | None, typer.Option(help="Levels that are kept, such as 3-8 or 1,5-8.")
    ] = None,
    top: Annotated[
        float | None,
        typer.Option(help="Share of all pairs that is kept, best scored first; equal scores too."),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Least length of a picture's shorter side, in pixels.")
    ] = None,
    max_aspect: Annotated[
        float | None, typer.Option(help="Greatest ratio of a picture's longer to its shorter side.")
    ] = None,
    min_caption: Annotated[
        int | None, typer.Option(help="Least length of a caption, in characters.")
    ] = None,
    max_caption: Annotated[
        int | None, typer.Option(help="Greatest length of a caption, in characters.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="COLUMN=en,de: values of that column that are kept.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition (DuckDB) on any columns of the dataset.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; by default one per core.")] = None,
    overwrite: OverwriteOption = False,
    storage_options: StorageOption = None,
) -> None:
    """Keep the pairs that fulfil all of the conditions given; bounds are inclusive."""
    from aligncurate.progress import showing
    from aligncurate.selection.conditions import Conditions
    from aligncurate.stages.filter import FILTERED_STAGES, filter

    conditions = Conditions(
        min_score=min_score, max_score=max_score, levels=levels, top=top,
        min_size=min_size, max_aspect=max_aspect,
        min_caption=min_caption, max_caption=max_caption,
        language=language, where=where,
    )  # fmt: skip
    source = dataset_at(input, *FILTERED_STAGES)
    with showing("filter", 2 * source.manifest.rows, "pairs", terminal.notes) as on_progress:
        dataset = filter(
            conditions,
            source.location,
            output,
            workers=workers,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    _show(dataset)


def _show(dataset: "Dataset") -> None:
    """What was kept and what each condition drops."""
    from rich.table import Table
    from rich.text import Text

    from aligncurate.reporting.format import clip_text, share_text
    from aligncurate.stages.filter import condition_counts

    manifest = dataset.manifest
    rows_in = manifest.rows + manifest.left_out
    terminal.results.print(
        f"{terminal.near(dataset.location)}: {rows_in:,} pairs in = {manifest.rows:,} kept "
        f"({share_text(manifest.rows / rows_in)}) + {manifest.left_out:,} filtered out + "
        f"{manifest.reject_count:,} rejects"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("condition")
    for heading in ("pairs that fail it", "that fail it alone"):
        table.add_column(heading, justify="right", no_wrap=True)
    for count in condition_counts(dataset):
        table.add_row(
            Text(clip_text(count.condition)), f"{count.fail:,}", f"{count.fail_only_this:,}"
        )
    terminal.results.print(table)
