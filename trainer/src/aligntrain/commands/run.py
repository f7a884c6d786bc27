"""`aligntrain run`."""

from typing import Annotated

import typer

from aligntrain import terminal
from aligntrain.commands.options import PhaseArgument, RecipeOption, SetOption


def run(
    phase: PhaseArgument,
    data: Annotated[
        str,
        typer.Option(help="Dataset: a levelled one to pretrain, an ingested one to finetune."),
    ],
    recipe: RecipeOption = "demo",
    set: SetOption = None,
    output: Annotated[
        str | None, typer.Option(help="Run folder; by default runs/<recipe>-<phase>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")
    ] = False,
    nproc: Annotated[
        int | None, typer.Option(help="Processes; by default one per GPU, or one.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="What to fine-tune from: a run, a merged model, an adapter file, or none. By "
            "default the newest finished pretrain run beside the output.",
        ),
    ] = None,
    profile: Annotated[
        int | None, typer.Option(help="Profile so many steps, into the run folder.")
    ] = None,
) -> None:
    """Train one phase: into a run folder with its recipe, metrics, checkpoints and the model."""
    from aligntrain.train.run import run

    done = run(
        phase,
        data,
        recipe=recipe,
        overrides=set or (),
        output=output,
        resume=resume,
        nproc=nproc,
        start=start,
        profile=profile,
    )
    terminal.show_run(done)
