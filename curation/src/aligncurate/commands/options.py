"""Options shared by commands, and commands generated from settings classes."""

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from aligncurate import terminal
from aligncurate.settings import option_of
from alignshared.stores.options import parse_storage_options, use_storage_options

if TYPE_CHECKING:
    from alignshared import Dataset

DatasetOption = Annotated[
    str | None, typer.Option(help="Dataset to read; by default the newest suitable one in data/.")
]
OutputOption = Annotated[
    str | None, typer.Option(help="Folder to write; by default a sibling of the input.")
]
ImageRootOption = Annotated[
    str | None,
    typer.Option(help="Folder that paths of images start from; by default the input's own."),
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
        help="Access to s3:// and gs://, repeatable: endpoint_override=host:port, region=…, "
        "anonymous=true, retries=…; keys by default from the environment.",
    ),
]
"""Option of all commands that access datasets; applies to the whole process."""


def dataset_at(input: str | None, *stages: str) -> "Dataset":
    """Return the dataset at `input`, or the newest one under `data/` of one of `stages`."""
    from aligncurate.output.locations import newest_dataset
    from alignshared import Dataset

    if input is not None:
        return Dataset(input)
    dataset = newest_dataset(*stages)
    logging.getLogger("aligncurate").info("reading %s.", terminal.near(dataset.location))
    return dataset


def options_from(*classes: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: give a command --storage-options and an option for each field of `classes` with a
    help text; the function receives each class's values by name.
    """
    parameters = [parameter for settings in classes for parameter in _parameters(settings)]
    storage = inspect.Parameter(
        "storage_options", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=StorageOption
    )

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            function(*({p.name: values[p.name] for p in _parameters(cls)} for cls in classes))

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        signature = inspect.Signature([*parameters, storage])
        vars(command)["__signature__"] = signature
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return decorate


def _parameters(settings: type) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        hint = hints[field.name]
        if help_and_type := getattr(hint, "__metadata__", None):
            help, kind = (*help_and_type, get_args(hint)[0])[:2]
            names = [option_of(field.name)] if kind is bool else []
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(field),
                annotation=Annotated[kind, typer.Option(*names, help=help)],
            )


def _default(field: "Field[Any]") -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
