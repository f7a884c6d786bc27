"""`aligntrain gate`."""

from typing import Annotated

import typer

from aligntrain import terminal


def gate(
    checkpoint: Annotated[str, typer.Argument(help="Run folder or model folder.")],
    data: Annotated[str, typer.Option(help="Dataset of conversations, or of pairs with captions.")],
    output: Annotated[
        str | None, typer.Option(help="Folder of the report; CHECKPOINT/gate by default.")
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Maximum questions, spread over the dataset; 0 for all.")
    ] = 2000,
    batch_size: Annotated[int, typer.Option(help="Prompts computed together.")] = 8,
    by: Annotated[
        str | None, typer.Option(help="Column of the question types; detected by default.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also force every level; this runs the LLM.")
    ] = False,
    sweep_limit: Annotated[int, typer.Option(help="Maximum questions of the sweep.")] = 256,
) -> None:
    """Report the gate's weights of the levels by type of question, and their effect."""
    from aligntrain.gate.explain import explain_gate

    terminal.hide_loading()
    with terminal.counting() as progress:
        report = explain_gate(
            checkpoint,
            data,
            output=output,
            limit=limit or None,
            batch_size=batch_size,
            by=by,
            sweep=sweep,
            sweep_limit=sweep_limit,
            progress=progress,
        )
    terminal.show_gate_report(report)
