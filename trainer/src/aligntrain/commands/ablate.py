"""`aligntrain ablate`."""

from typing import Annotated

import typer

from aligntrain import terminal
from aligntrain.commands.options import SetOption


def ablate(
    design: Annotated[
        str, typer.Argument(help="A built-in ablation (demo, paper) or a YAML file.")
    ] = "demo",
    pretrain_data: Annotated[
        str, typer.Option(help="Levelled pairs to pretrain on.")
    ] = "data/demo/bucket",
    finetune_data: Annotated[
        str, typer.Option(help="Conversations to fine-tune on.")
    ] = "data/demo/ingest",
    questions: Annotated[
        str | None,
        typer.Option(
            help="JSON of held-out questions; by default those used before, or held-out rows."
        ),
    ] = None,
    kinds: Annotated[
        list[str] | None, typer.Option(help="Ask only questions of this kind; may be repeated.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder; by default runs/ablation-<name>.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to use instead of the ablation's own.")
    ] = None,
    set: SetOption = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds; by default the ablation's own.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Train only this variant and the baseline; may be repeated."),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Processes per run; by default one per GPU, or one.")
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the weights of every run.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the runs and their time; start nothing.")
    ] = False,
) -> None:
    """Train variants of a recipe over several seeds and test their differences for significance."""
    from aligntrain.ablation.runner import ablate, open_ablation

    ablation = open_ablation(
        design,
        pretrain_data,
        finetune_data,
        output=output,
        recipe=recipe,
        overrides=set or (),
        seeds=seeds,
        only=only or (),
    )
    if plan:
        terminal.show_planned(ablation)
        return
    terminal.hide_loading()
    outcome = ablate(
        ablation,
        questions=questions,
        kinds=kinds or (),
        nproc=nproc,
        keep_models=keep_models,
        progress=terminal.counting,
    )
    terminal.show_outcome(outcome)
