"""Arguments and options shared by several commands."""

from typing import Annotated, Literal

import typer

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
