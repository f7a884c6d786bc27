"""`aligntrain run`, `prepare` and `plan`."""

from typing import Annotated, Literal

import typer

from alignshared.console import near, results
from aligntrain import terminal

PhaseArgument = Annotated[
    Literal["pretrain", "finetune"],
    typer.Argument(help="pretrain: projector and level vectors; finetune: LLM, projector, gate."),
]
RecipeOption = Annotated[
    str, typer.Option(help="Name of a recipe that ships (demo, vicuna-7b, ...) or a YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one key, as in --set optimizer.lr=1e-4; may be repeated."),
]
OutputOption = Annotated[
    str | None, typer.Option(help="Run folder; by default runs/<recipe>-<phase>.")
]


def run(
    phase: PhaseArgument,
    data: Annotated[
        str,
        typer.Option(help="Dataset: a levelled one to pretrain, an ingested one to finetune."),
    ],
    recipe: RecipeOption = "demo",
    set: SetOption = None,
    output: OutputOption = None,
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


def prepare(
    phase: PhaseArgument,
    data: Annotated[str, typer.Option(help="Dataset, as for run.")],
    recipe: RecipeOption = "demo",
    set: SetOption = None,
    output: OutputOption = None,
    start: Annotated[str | None, typer.Option("--from", help="As for run.")] = None,
) -> None:
    """Make a run folder and start nothing: torchrun or the deepspeed launcher work on it."""
    from aligntrain.train.run import prepare

    folder = prepare(
        phase, data, recipe=recipe, overrides=set or (), output=output, start=start, resume=True
    )
    results.print(near(folder))


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
