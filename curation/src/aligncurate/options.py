"""Commands generated from the settings of stages."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from aligncurate import terminal
from aligncurate.settings import DatasetSettings, arguments_of, option_of
from alignshared.stores.options import parse_storage_options, use_storage_options

if TYPE_CHECKING:
    from alignshared import Dataset


def _use_storage_options(pairs: list[str] | None) -> list[str] | None:
    if pairs:
        use_storage_options(parse_storage_options(pairs))
    return pairs


# An option of all commands; applies to the whole process.
_STORAGE = inspect.Parameter(
    "storage_options",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            callback=_use_storage_options,
            help="Access to s3:// and gs://, repeatable: endpoint_override=host:port, region=…, "
            "anonymous=true, retries=…; keys by default from the environment.",
        ),
    ],
)


def options_from(settings: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: give a command an option for each field of `settings` with a help text, and
    --storage-options. The function receives the settings, and the options that it adds itself.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(function).parameters.values()

        def command(**values: Any) -> None:
            added = {option.name: values[option.name] for option in own}
            function(_made(settings, values), **added)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        parameters = [*sorted(_parameters(settings), key=_place), *own, _STORAGE]
        signature = inspect.Signature(parameters)
        vars(command)["__signature__"] = signature
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return decorate


def _made(settings: type[Any], values: dict[str, Any]) -> Any:
    """Settings with the options' `values`."""
    arguments: dict[str, Any] = {}
    for name, hint, _ in _fields(settings):
        if isinstance(hint, type) and is_dataclass(hint):
            arguments[name] = _made(hint, values)
        elif name in values:
            arguments[name] = values[name]
    return settings(**arguments)


def _parameters(settings: type[Any]) -> Iterator[inspect.Parameter]:
    for name, hint, default in _fields(settings):
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _parameters(hint)
        elif help_and_type := getattr(hint, "__metadata__", None):
            help, kind = (*help_and_type, get_args(hint)[0])[:2]
            names = [option_of(name)] if kind is bool else []
            yield inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is MISSING else default,
                annotation=Annotated[kind, typer.Option(*names, help=help)],
            )


def _fields(settings: type[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each field of `settings`."""
    hints = get_type_hints(settings, include_extras=True)
    return ((field.name, hints[field.name], field.default) for field in fields(settings))


def _place(option: inspect.Parameter) -> tuple[bool, bool]:
    """Required options first, then input and output."""
    return option.default is not option.empty, option.name not in ("input", "output")


def dataset_of(settings: DatasetSettings) -> "Dataset":
    """Return the dataset that `settings` name, by default the newest of their stages in data/."""
    from aligncurate.output.folder import newest_dataset
    from alignshared import Dataset

    if settings.input is not None:
        return Dataset(settings.input)
    dataset = newest_dataset(*settings.stages)
    logging.getLogger("aligncurate").info("reading %s.", terminal.near(dataset.location))
    return dataset


@contextmanager
def reading(
    settings: DatasetSettings, task: str, passes: int = 1, unit: str = "pairs", others: int = 0
) -> Iterator[dict[str, Any]]:
    """Show the progress of `task`, which reads its dataset's rows `passes` times and `others`
    more; yield the arguments of its function.
    """
    dataset = dataset_of(settings)
    with terminal.showing(task, passes * dataset.manifest.rows + others, unit) as on_progress:
        yield arguments_of(settings, input=dataset.location, on_progress=on_progress)
