"""`aligncurate report`."""

from typing import Annotated

import typer

from aligncurate import terminal
from aligncurate.commands.options import DatasetOption, OutputOption, dataset_at


def report(
    input: DatasetOption = None,
    output: OutputOption = None,
    examples: Annotated[int, typer.Option(help="Example pairs of each level.")] = 8,
    cut: Annotated[
        float | None, typer.Option(help="A score: tell how many pairs lie at or above it.")
    ] = None,
) -> None:
    """Draw the scores, the levels, example pairs and rejects as one HTML file and as PNG."""
    from aligncurate.progress import showing
    from aligncurate.stages.report import report

    dataset = dataset_at(input, "bucket", "score")
    total = dataset.manifest.rows * (2 if cut is None else 3)
    with showing("report", total, "pairs", terminal.progress) as on_progress:
        files = report(
            dataset.location, output, examples=examples, cut=cut, on_progress=on_progress
        )
    terminal.show_files([files.page, files.histogram, files.levels, files.gallery])
