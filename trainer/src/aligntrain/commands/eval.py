"""`aligntrain eval`."""

from typing import Annotated

import typer

from aligntrain import terminal


def eval(
    checkpoint: Annotated[str, typer.Argument(help="A run folder, or a model's own.")],
    benchmarks: Annotated[
        str,
        typer.Option(help="Names by comma, as in pope,mme,gqa; paper for the paper's twelve."),
    ],
    data: Annotated[
        str | None, typer.Option(help="Folder with the benchmarks' files; by default the Hub.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Where to keep answers; CHECKPOINT/eval by default.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Ask the first so many questions of each, to try it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions at a time.")] = 1,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in the place of the protocol's.")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Base of an OpenAI-compatible API; key in OPENAI_API_KEY.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there.")] = None,
) -> None:
    """Score a fine-tuned model on the paper's benchmarks, beside the published values."""
    from alignshared import InputError
    from aligntrain.evaluate import Judge, Settings, evaluate

    terminal.hide_loading()
    if (judge_url is None) != (judge_model is None):
        raise InputError("a judge is an address and a name; give --judge-url and --judge-model.")
    judge = Judge(judge_url, judge_model) if judge_url and judge_model else None
    settings = Settings(
        data=data,
        limit=limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        judge=judge,
        console=terminal.notes,
    )
    terminal.show_evaluation(evaluate(checkpoint, benchmarks, settings, output=output))
