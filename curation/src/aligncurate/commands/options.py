"""Options that several commands share."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from aligncurate import terminal
from alignshared.storage_options import parse_storage_options, use_storage_options

if TYPE_CHECKING:
    from alignshared import Dataset

DatasetOption = Annotated[
    str | None, typer.Option(help="Dataset to read; by default the newest that fits in data/.")
]
OutputOption = Annotated[
    str | None, typer.Option(help="Folder to write; by default a sibling of the input.")
]
ImageRootOption = Annotated[
    str | None,
    typer.Option(help="Folder that pictures' paths start from; by default the input's own."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the dataset or unfinished run in the output.")
]
UnitTimeoutOption = Annotated[
    float, typer.Option(help="Seconds without progress after which a unit counts as failed.")
]
RetryFailedOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try units again that failed in earlier runs.")
]
SkipFailedOption = Annotated[
    bool, typer.Option("--skip-failed", help="Leave failed units out: their rows become rejects.")
]


def _use_storage_options(pairs: list[str] | None) -> list[str] | None:
    if pairs:
        use_storage_options(parse_storage_options(pairs))
    return pairs


StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-options",
        metavar="KEY=VALUE",
        callback=_use_storage_options,
        help="How s3:// and gs:// are reached, repeatable: endpoint_override=host:port, region=…, "
        "anonymous=true, retries=…; keys by default from the environment.",
    ),
]
"""Taken by every command that reads or writes datasets; it holds for all of the process."""


def dataset_at(input: str | None, *stages: str) -> "Dataset":
    """The dataset at `input`, or the newest one under `data/` that one of `stages` wrote."""
    from aligncurate.output.locations import newest_dataset
    from alignshared import Dataset

    if input is not None:
        return Dataset(input)
    dataset = newest_dataset(*stages)
    logging.getLogger("aligncurate").info("reading %s.", terminal.near(dataset.location))
    return dataset
