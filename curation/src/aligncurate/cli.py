"""The `aligncurate` command: its global options, its errors, and the list of its commands.

Nothing heavy is imported at the top, so that `--help` answers at once.
"""

import logging
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aligncurate import terminal
from aligncurate.commands import (
    bucket,
    dedup,
    export,
    filter,
    ingest,
    inspect,
    report,
    sample,
    score,
    search,
    validate,
)
from alignshared.errors import AlignError

_INTERRUPTED = 130
"""What shells answer for a command that Ctrl-C stopped."""


class _Commands(TyperGroup):
    """Turns what users can meet into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AlignError as error:
            if ctx.params["debug"]:
                raise
            terminal.show_error(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # a full disk, a lost network drive
            if ctx.params["debug"]:
                raise
            terminal.show_error(f"{error}; see where with aligncurate --debug.")
            raise typer.Exit(AlignError.exit_code) from error
        except KeyboardInterrupt as error:
            terminal.show_error("stopped; run the same command to go on.")
            raise typer.Exit(_INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes as long to draw the help as Python to start
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"aligncurate {version('aligncurate')}")
        raise typer.Exit


@app.callback()
def aligncurate(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Score image-text pairs with CLIP, sort them into alignment levels, report on them."""
    terminal.show_log(logging.DEBUG if debug else logging.INFO)


for command in (
    score.score,
    ingest.ingest,
    bucket.bucket,
    filter.filter,
    sample.sample,
    dedup.dedup,
    search.search,
    report.report,
    export.export,
    inspect.inspect,
    validate.validate,
):
    app.command()(command)


def main() -> None:
    """Entry point of the `aligncurate` command."""
    app()
