"""`aligncurate report`."""

from typing import Annotated

import typer

from aligncurate import terminal
from aligncurate.commands.options import DatasetOption, OutputOption, StorageOption, dataset_at


def report(
    input: DatasetOption = None,
    output: OutputOption = None,
    against: Annotated[
        str | None,
        typer.Option(help="Another scored dataset to compare the input with."),
    ] = None,
    examples: Annotated[int, typer.Option(help="Example pairs to show of each level.")] = 8,
    storage_options: StorageOption = None,
) -> None:
    """Draw the scores, the levels, example pairs and rejects as one HTML file and as PNG."""
    from aligncurate.output.locations import READABLE_STAGES
    from aligncurate.progress import showing
    from aligncurate.stages.report import report

    dataset = dataset_at(input, *READABLE_STAGES)
    other = None if against is None else dataset_at(against)
    rows = dataset.manifest.rows + (other.manifest.rows if other else 0)
    with showing("report", rows, "pairs", terminal.notes) as on_progress:
        files = report(
            dataset.location,
            output,
            against=against,
            examples=examples,
            on_progress=on_progress,
        )
    for sentence in files.drift.sentences if files.drift else ():
        terminal.results.print(sentence)
    drift = files.drift.figure if files.drift else None
    terminal.show_files([files.page, files.histogram, files.levels, files.gallery, drift])
