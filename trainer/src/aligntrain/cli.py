"""The `aligntrain` command: its global options, its errors, and the list of its commands.

Nothing heavy is imported at the top, so that `--help` answers at once.
"""

import logging
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from alignshared.errors import AlignError
from aligntrain import terminal
from aligntrain.commands import (
    ablate,
    chat,
    convert,
    eval,
    export,
    gate,
    merge,
    plan,
    prepare,
    run,
    serve,
)

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
            terminal.show_error(f"{error}; see where with aligntrain --debug.")
            raise typer.Exit(AlignError.exit_code) from error
        except KeyboardInterrupt as error:
            terminal.show_error("stopped; the same command goes on, a run with --resume.")
            raise typer.Exit(_INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, drawn in half the time
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"aligntrain {version('aligntrain')}")
        raise typer.Exit


@app.callback()
def aligntrain(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Train a multimodal LLM on pairs that `aligncurate` sorted into alignment levels."""
    terminal.show_log(logging.DEBUG if debug else logging.INFO)


for command in (
    run.run,
    prepare.prepare,
    plan.plan,
    chat.chat,
    eval.eval,
    serve.serve,
    gate.gate,
    ablate.ablate,
    merge.merge,
    export.export,
    convert.convert,
):
    app.command()(command)


def main() -> None:
    """Entry point of the `aligntrain` command."""
    app()
