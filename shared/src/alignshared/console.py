"""Command-line parts shared by both packages: global options, errors, the log, exit codes.

Imports nothing heavy, so that `--help` is fast.
"""

import logging
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from alignshared.errors import AlignError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

results = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def command_line(
    package: str, summary: str, stopped: str, commands: Sequence[Callable[..., None]]
) -> typer.Typer:
    """Build the command `package` with `--debug`, `--version` and the subcommands `commands`.

    `stopped` is the sentence printed after Ctrl-C.
    """

    class Commands(TyperGroup):
        """Turns user-facing errors into one line on stderr and an exit code."""

        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:
                show_error(stopped)
                raise typer.Exit(INTERRUPTED) from error
            except (AlignError, OSError) as error:  # OSError: a full disk, a lost network drive
                if ctx.params["debug"]:
                    raise
                known = isinstance(error, AlignError)
                show_error(str(error) if known else f"{error}; see where with {package} --debug.")
                raise typer.Exit(error.exit_code if known else AlignError.exit_code) from error

    app = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes as long to draw the help as Python to start
        context_settings={"help_option_names": ["--help", "-h"]},
    )

    def show_version(requested: bool) -> None:
        if requested:
            typer.echo(f"{package} {version_of(package)}")
            raise typer.Exit

    @app.callback(help=summary)
    def options(
        debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
        version: Annotated[
            bool,
            typer.Option(
                "--version", help="Show the version.", callback=show_version, is_eager=True
            ),
        ] = False,
    ) -> None:
        show_log(package, logging.DEBUG if debug else logging.INFO)

    for command in commands:
        app.command()(command)
    return app


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        text = Text("warning: ", style="yellow") if warning else Text()
        notes.print(text.append(self.format(record), style="default"))


def show_log(package: str, level: int) -> None:
    """Log messages of `package` at `level` and above to stderr as plain sentences."""
    log = logging.getLogger(package)
    log.handlers = [_Log()]
    log.setLevel(level)
    log.propagate = False


def show_error(sentence: str) -> None:
    """Print an error to stderr."""
    notes.print(Text("error: ", style="bold red").append(sentence, style="default"))


def near(location: str | os.PathLike[str]) -> str:
    """Return `location` relative to the current folder if it is below it."""
    text = os.fspath(location)
    if "://" in text:
        return text
    try:
        return os.fspath(Path(text).absolute().relative_to(Path.cwd()))
    except ValueError:
        return text
