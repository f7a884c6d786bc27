"""`aligncurate sample`."""

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


def sample(
    input: DatasetOption = None,
    output: OutputOption = None,
    rows: Annotated[
        int | None, typer.Option(help="Pairs in all, as evenly from the levels as possible.")
    ] = None,
    per_level: Annotated[int | None, typer.Option(help="Pairs of each level.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other pairs.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Threads; by default one per core.")] = None,
    overwrite: OverwriteOption = False,
    storage_options: StorageOption = None,
) -> None:
    """Draw pairs evenly from all levels: the same ones every time, by id and seed alone."""
    from aligncurate.progress import showing
    from aligncurate.stages.sample import SAMPLED_STAGES, sample

    source = dataset_at(input, *SAMPLED_STAGES)
    with showing("sample", 2 * source.manifest.rows, "pairs", terminal.notes) as on_progress:
        dataset = sample(
            source.location,
            output,
            rows=rows,
            per_level=per_level,
            seed=seed,
            workers=workers,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    _show(dataset)


def _show(dataset: "Dataset") -> None:
    """Print the number of pairs drawn, in total and per level."""
    from rich.table import Table

    from aligncurate.stages.sample import drawn_by_level

    manifest = dataset.manifest
    terminal.results.print(
        f"{terminal.near(dataset.location)}: {manifest.rows + manifest.left_out:,} pairs in = "
        f"{manifest.rows:,} drawn + {manifest.left_out:,} not drawn + "
        f"{manifest.reject_count:,} rejects"
    )
    levels = drawn_by_level(dataset)
    if levels:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("level", "drawn", "of"):
            table.add_column(heading, justify="right", no_wrap=True)
        for level in reversed(levels):
            table.add_row(str(level.level), f"{level.drawn:,}", f"{level.pairs:,}")
        terminal.results.print(table)
