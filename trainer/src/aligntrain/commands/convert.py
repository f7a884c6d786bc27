"""`aligntrain convert`."""

from typing import Annotated

import typer

from aligntrain import terminal


def convert(
    source: Annotated[str, typer.Argument(help="The authors' file or checkpoint folder.")],
    output: Annotated[str, typer.Argument(help="Folder to write.")],
    vision_tower: Annotated[
        str | None, typer.Option(help="By default the one that the source's config names.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="By default the one that the source's config names.")
    ] = None,
) -> None:
    """Read AlignGPT's or LLaVA-1.5's own files and write a model in transformers' form."""
    from aligntrain.export.convert import convert

    terminal.hide_loading()
    terminal.show_converted(convert(source, output, vision_tower=vision_tower, llm=llm))
