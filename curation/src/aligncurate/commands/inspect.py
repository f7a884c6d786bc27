"""`aligncurate inspect`."""

from aligncurate import terminal
from aligncurate.commands.options import DatasetOption, StorageOption, dataset_at


def inspect(input: DatasetOption = None, storage_options: StorageOption = None) -> None:
    """Tell what is in a dataset, from its manifest."""
    from aligncurate.output.locations import READABLE_STAGES
    from aligncurate.stages.inspect import inspect

    # Not opened as a dataset if given: unfinished runs can be inspected too.
    terminal.show_inspection(inspect(input or dataset_at(None, *READABLE_STAGES).location))
