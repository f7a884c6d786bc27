"""`aligncurate report`."""

from typing import Annotated

import typer

from aligncurate import terminal
from aligncurate.commands.options import DatasetOption, OutputOption, dataset_at


def report(
    input: DatasetOption = None,
    output: OutputOption = None,
    examples: Annotated[int, typer.Option(help="Example pairs of each level.")] = 8,
) -> None:
    """Draw the scores, the levels, example pairs and rejects as one HTML file and as PNG."""
    from aligncurate.places import READABLE_STAGES
    from aligncurate.progress import showing
    from aligncurate.stages.report import report

    dataset = dataset_at(input, *READABLE_STAGES)
    with showing("report", 2 * dataset.manifest.rows, "pairs", terminal.progress) as on_progress:
        files = report(dataset.location, output, examples=examples, on_progress=on_progress)
    terminal.show_files([files.page, files.histogram, files.levels, files.gallery])
