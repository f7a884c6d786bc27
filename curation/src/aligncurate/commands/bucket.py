"""`aligncurate bucket`."""

from typing import Annotated, Literal

import typer

from aligncurate import terminal
from aligncurate.commands.options import (
    DatasetOption,
    OutputOption,
    OverwriteOption,
    StorageOption,
    dataset_at,
)


def bucket(
    input: DatasetOption = None,
    output: OutputOption = None,
    levels: Annotated[int | None, typer.Option(help="Number of levels; 8 by default.")] = None,
    edges: Annotated[
        str | None,
        typer.Option(help="levels.json of an earlier run whose edges to use."),
    ] = None,
    scheme: Annotated[
        Literal["quantile", "equal-width"],
        typer.Option(help="Levels of equal size, or of equal width in score."),
    ] = "quantile",
    workers: Annotated[int | None, typer.Option(help="Threads; by default one per core.")] = None,
    overwrite: OverwriteOption = False,
    storage_options: StorageOption = None,
) -> None:
    """Sort scored pairs into alignment levels by exact quantiles of their scores."""
    from aligncurate.progress import showing
    from aligncurate.stages.bucket import bucket
    from aligncurate.stages.inspect import inspect

    scored = dataset_at(input, "score")
    with showing("bucket", scored.manifest.rows, "pairs", terminal.notes) as on_progress:
        dataset = bucket(
            scored.location,
            output,
            levels=levels,
            edges=edges,
            scheme=scheme,
            workers=workers,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    terminal.show_levels(inspect(dataset.location))
