"""`aligntrain export`."""

from typing import Annotated

import typer

from aligntrain import terminal


def export(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder.")],
    output: Annotated[str, typer.Argument(help="Folder to write.")],
    format: Annotated[
        str,
        typer.Option(help="llava: transformers' own LLaVA (mixing none); llm: the LLM alone."),
    ] = "llava",
) -> None:
    """Write a trained model in a format that other programs read, with a model card."""
    from aligntrain.export.model import export_model

    terminal.hide_loading()
    terminal.show_exported(export_model(model, output, format))
