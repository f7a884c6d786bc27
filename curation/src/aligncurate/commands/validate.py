"""`aligncurate validate`."""

import typer

from aligncurate import terminal
from aligncurate.commands.options import DatasetOption, StorageOption, dataset_at


def validate(input: DatasetOption = None, storage_options: StorageOption = None) -> None:
    """Check that a dataset keeps the contract: checksums, columns, ids, counts, levels."""
    from aligncurate.output.locations import READABLE_STAGES
    from aligncurate.progress import showing
    from aligncurate.stages.validate import validate

    dataset = dataset_at(input, *READABLE_STAGES)
    with showing("validate", dataset.manifest.rows, "pairs", terminal.notes) as on_progress:
        found = validate(dataset.location, on_progress=on_progress)
    terminal.show_validation(found)
    if not found.ok:
        raise typer.Exit(2)
