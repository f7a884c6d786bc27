"""`aligntrain merge`."""

from typing import Annotated

import typer

from aligntrain import terminal


def merge(
    run: Annotated[str, typer.Argument(help="The folder of a LoRA run.")],
    output: Annotated[str, typer.Argument(help="Folder to write.")],
) -> None:
    """Merge the LoRA weights of a run into its LLM and write the whole model."""
    from aligntrain.export.merge import merge

    terminal.hide_loading()
    terminal.show_merged(merge(run, output))
