"""`aligntrain convert`."""

from typing import Annotated

import typer

from aligntrain import terminal


def convert(
    source: Annotated[str, typer.Argument(help="The authors' file or checkpoint folder.")],
    output: Annotated[str, typer.Argument(help="Folder to write.")],
    vision_tower: Annotated[
        str | None, typer.Option(help="Name or folder; by default from the source's config.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="Name or folder; by default from the source's config.")
    ] = None,
) -> None:
    """Convert files of AlignGPT or LLaVA-1.5 to a model in transformers' format."""
    from aligntrain.export.convert import convert

    terminal.hide_loading()
    terminal.show_converted(convert(source, output, vision_tower=vision_tower, llm=llm))
