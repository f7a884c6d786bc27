"""Commands that write a trained model for others: export, merge, convert and push."""

from typing import Annotated

import typer

from alignshared.console import (
    DryRunOption,
    PrivateOption,
    PushOption,
    RepoArgument,
    destination_of,
    near,
    results,
    show_pushed,
)
from aligntrain import terminal

OutputArgument = Annotated[str, typer.Argument(help="Folder to write.")]


def export(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder.")],
    output: OutputArgument,
    format: Annotated[
        str, typer.Option(help="llava: transformers' own LLaVA; llm: the LLM alone.")
    ] = "llava",
    level: Annotated[
        str | None,
        typer.Option(help="The vector that LLaVA gets before images: 1 to N, mean, or global."),
    ] = None,
    push_to_hub: PushOption = None,
    private: PrivateOption = False,
) -> None:
    """Write a trained model in a format that other programs read, with a model card."""
    from aligntrain.export.model import export_model
    from aligntrain.export.push import push

    destination = destination_of(push_to_hub, "model", private=private)
    terminal.hide_loading()
    done = export_model(model, output, format, level=level)
    vector = f", <level_{done.vector}> before images" if done.vector else ""
    parameters = f"{done.parameters:,} parameters"
    results.print(f"{near(done.output)}: {done.format}, {parameters}{vector}")
    if done.cost:
        results.print(f"  cost of the fixed vector: {done.cost}")
    if destination is not None:
        show_pushed(push(done.output, destination))


def merge(
    run: Annotated[str, typer.Argument(help="The folder of a LoRA run.")],
    output: OutputArgument,
    push_to_hub: PushOption = None,
    private: PrivateOption = False,
) -> None:
    """Merge the LoRA weights of a run into its LLM and write the whole model."""
    from aligntrain.export.model import merge
    from aligntrain.export.push import push

    destination = destination_of(push_to_hub, "model", private=private)
    terminal.hide_loading()
    done = merge(run, output)
    results.print(
        f"{near(done.output)}: {done.parameters:,} parameters, LoRA merged into "
        f"{done.matrices} matrices"
    )
    if destination is not None:
        show_pushed(push(done.output, destination))


def convert(
    source: Annotated[str, typer.Argument(help="The authors' files, or an earlier model.")],
    output: OutputArgument,
    vision_tower: Annotated[
        str | None, typer.Option(help="Name or folder; by default from the source's config.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="Name or folder; by default from the source's config.")
    ] = None,
) -> None:
    """Convert files of AlignGPT or LLaVA-1.5, or an earlier model, to one of this version."""
    from aligntrain.export.convert import convert

    terminal.hide_loading()
    done = convert(source, output, vision_tower=vision_tower, llm=llm)
    levels = "no levels" if done.levels is None else f"{done.levels} levels"
    results.print(f"{near(done.output)}: {done.kind}, {levels}, mixing {done.mixing}")
    if done.new:
        results.print(f"  not in the source, so new: {', '.join(done.new)}")


def push(
    model: Annotated[str, typer.Argument(help="The folder of a finished run, or a model's own.")],
    repo: RepoArgument,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Upload a trained model to the Hugging Face Hub, from where chat OWNER/NAME loads it."""
    from alignshared.hub import Destination
    from aligntrain.export.push import push

    show_pushed(push(model, Destination(repo, "model", private), dry_run=dry_run))
