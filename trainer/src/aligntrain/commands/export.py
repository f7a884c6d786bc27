"""`aligntrain export`, `merge` and `convert`."""

from typing import Annotated

import typer

from alignshared.console import near, results
from aligntrain import terminal

OutputArgument = Annotated[str, typer.Argument(help="Folder to write.")]


def export(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder.")],
    output: OutputArgument,
    format: Annotated[
        str,
        typer.Option(help="llava: transformers' own LLaVA (mixing none); llm: the LLM alone."),
    ] = "llava",
) -> None:
    """Write a trained model in a format that other programs read, with a model card."""
    from aligntrain.export.model import export_model

    terminal.hide_loading()
    done = export_model(model, output, format)
    parameters = f"{done.parameters:,} parameters"
    results.print(f"{near(done.output)}: {done.format}, {parameters}")


def merge(
    run: Annotated[str, typer.Argument(help="The folder of a LoRA run.")],
    output: OutputArgument,
) -> None:
    """Merge the LoRA weights of a run into its LLM and write the whole model."""
    from aligntrain.export.model import merge

    terminal.hide_loading()
    done = merge(run, output)
    results.print(
        f"{near(done.output)}: {done.parameters:,} parameters, LoRA merged into "
        f"{done.matrices} matrices"
    )


def convert(
    source: Annotated[str, typer.Argument(help="The authors' file or checkpoint folder.")],
    output: OutputArgument,
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
    done = convert(source, output, vision_tower=vision_tower, llm=llm)
    levels = "no levels" if done.levels is None else f"{done.levels} levels"
    results.print(f"{near(done.output)}: {done.kind}, {levels}, mixing {done.mixing}")
    if done.new:
        results.print(f"  not in the source, so new: {', '.join(done.new)}")
