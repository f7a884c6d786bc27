"""Command-line parts shared by both packages: global options, errors, the log, progress, tables.

Imports nothing heavy, so that `--help` is fast.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from alignshared.errors import AlignError, InputError

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from alignshared.hub import Destination, Pushed

T = TypeVar("T")

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

LINE_EVERY_S = 10.0
"""Seconds between two lines of progress in a log."""

PushOption = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="Upload the result to this repository of the Hugging Face Hub.",
    ),
]
PrivateOption = Annotated[
    bool, typer.Option("--private", help="Make the repository private; refused if it is public.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and list the files; upload nothing.")
]
RepoArgument = Annotated[
    str, typer.Argument(metavar="OWNER/NAME", help="Repository of the Hugging Face Hub.")
]

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


def section(title: str, content: "Table | Text") -> None:
    """Print `content` as a result, under `title`."""
    results.print()
    results.print(Text(title, style="bold"))
    results.print(content)


def table(*headings: str, left: int = 1) -> "Table":
    """Return an empty table whose first `left` columns are flush left, the others right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if column < left else "right", no_wrap=True)
    return table


def progress_bars(console: Console, *, transient: bool = True) -> "Progress":
    """Return bars for a terminal, with the field `state` beside each; nothing shows elsewhere."""
    from rich import progress as rich

    return rich.Progress(
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[state]}"),
        rich.TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


class ShowProgress(Protocol):
    """Show that `done` are done, with `state` beside the bar, or `line` in a log.

    A line is due every LINE_EVERY_S seconds, and always with `last`.
    """

    def __call__(self, done: int, state: str, line: str, *, last: bool = False) -> None: ...


@contextmanager
def progress(
    task: str, total: int | None, console: Console | None, *, begun: int = 0, transient: bool = True
) -> Iterator[ShowProgress]:
    """Show progress of `task` on `console`, if any: a bar on a terminal, else occasional lines.

    `begun` of `total` were done by an earlier run. A bar that is not `transient` stays at the end.
    """
    console = console or Console(quiet=True, force_terminal=False)
    with progress_bars(console, transient=transient) as bars:
        row = bars.add_task(task, total=total, completed=begun, state="")
        last_line = time.monotonic()

        def show(done: int, state: str, line: str, *, last: bool = False) -> None:
            nonlocal last_line
            bars.update(row, completed=done, state=state)
            if not console.is_terminal and (last or time.monotonic() - last_line >= LINE_EVERY_S):
                last_line = time.monotonic()
                console.print(line)

        yield show


def watched(items: Iterable[T], title: str, total: int, console: Console | None) -> Iterator[T]:
    """Yield `items`, `total` of them, showing progress on `console`, if any."""
    began = time.monotonic()
    with progress(title, total, console, transient=False) as show:
        for done, item in enumerate(items, start=1):
            yield item
            rate = done / max(time.monotonic() - began, 1e-9)
            left = timedelta(seconds=round((total - done) / rate))
            state = f"{rate:.2g}/s"
            show(done, state, f"{title}: {done:,} of {total:,}, {state}, {left} left")


def destination_of(
    push_to_hub: str | None, kind: Literal["model", "dataset"], *, private: bool
) -> "Destination | None":
    """Return where --push-to-hub and --private lead, checked with the Hub; None if nowhere.

    Raises:
        InputError: the repository cannot be used, or --private stands alone.
    """
    if push_to_hub is None:
        if private:
            raise InputError("--private goes with --push-to-hub OWNER/NAME; give both or neither.")
        return None
    from alignshared.hub import Destination

    destination = Destination(push_to_hub, kind, private)
    destination.check()
    return destination


def show_pushed(pushed: "Pushed") -> None:
    """Print where the files went; after a dry run also which, and that they did not go."""
    from rich.filesize import decimal

    if pushed.dry_run:
        for file, size in pushed.files:
            results.print(f"  {decimal(size):>9}  {file}")
    count, destination = len(pushed.files), pushed.destination
    private = "private " if destination.private else ""
    where = f" to a new {private}repository" if pushed.new else ""
    done = "would be uploaded" if pushed.dry_run else "uploaded"
    results.print(
        f"{destination.url}: {count} file{'s' * (count != 1)}, {decimal(pushed.bytes)}, "
        f"{done}{where}"
    )


def near(location: str | os.PathLike[str]) -> str:
    """Return `location` relative to the current folder if it is below it."""
    text = os.fspath(location)
    if "://" in text:
        return text
    try:
        return os.fspath(Path(text).absolute().relative_to(Path.cwd()))
    except ValueError:
        return text
