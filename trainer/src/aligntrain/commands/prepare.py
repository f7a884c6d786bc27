"""`aligntrain prepare`."""

from typing import Annotated

import typer

from aligntrain import terminal
from aligntrain.commands.options import PhaseArgument, RecipeOption, SetOption


def prepare(
    phase: PhaseArgument,
    data: Annotated[str, typer.Option(help="Dataset, as for run.")],
    recipe: RecipeOption = "demo",
    set: SetOption = None,
    output: Annotated[
        str | None, typer.Option(help="Run folder; by default runs/<recipe>-<phase>.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="As for run.")] = None,
) -> None:
    """Make a run folder and start nothing: torchrun or the deepspeed launcher work on it."""
    from aligntrain.train.run import prepare

    folder = prepare(
        phase, data, recipe=recipe, overrides=set or (), output=output, start=start, resume=True
    )
    terminal.results.print(terminal.near(folder))
