"""`aligntrain plan`."""

from typing import Annotated

import typer

from aligntrain import terminal
from aligntrain.commands.options import PhaseArgument, RecipeOption, SetOption


def plan(
    phase: PhaseArgument,
    recipe: RecipeOption = "demo",
    set: SetOption = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs to plan for.")] = 1,
    data: Annotated[str | None, typer.Option(help="Dataset, for steps and tokens.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Its number of samples, where it is not at hand.")
    ] = None,
) -> None:
    """Tell what a run would need, from configurations alone: nothing is loaded."""
    from aligntrain.plan.estimate import plan

    terminal.show_plan(plan(recipe, phase, gpus=gpus, data=data, rows=rows, overrides=set or ()))
