"""`aligntrain gate`."""

from typing import Annotated

import typer

from aligntrain import terminal


def gate(
    checkpoint: Annotated[str, typer.Argument(help="A run folder, or a model's own.")],
    data: Annotated[
        str, typer.Option(help="Dataset: one with conversations, or pairs with captions.")
    ],
    output: Annotated[
        str | None, typer.Option(help="Folder of the report; by default gate/ in the model's.")
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Questions at most, spread over the dataset; 0 for all.")
    ] = 2000,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.")] = 8,
    by: Annotated[
        str | None, typer.Option(help="Column that tells the types; by default one is looked for.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Force every level as well; runs the LLM.")
    ] = False,
    sweep_limit: Annotated[int, typer.Option(help="Questions of the sweep at most.")] = 256,
) -> None:
    """Report what weights the gate gives the levels, by type of question, and what they change."""
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
