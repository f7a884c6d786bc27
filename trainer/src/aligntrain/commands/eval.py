"""`aligntrain eval`."""

from typing import Annotated

import typer

from alignshared.console import notes
from aligntrain import terminal


def eval(
    checkpoint: Annotated[str, typer.Argument(help="Run folder or model folder.")],
    benchmarks: Annotated[
        str,
        typer.Option(help="Comma-separated names, as in pope,mme,gqa; paper for all twelve."),
    ],
    data: Annotated[
        str | None, typer.Option(help="Folder of the benchmarks' files, instead of the Hub.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of answers and scores; CHECKPOINT/eval by default.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Ask only the first questions of each benchmark.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions answered together.")] = 1,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, instead of the protocol's.")
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="Base URL of an OpenAI-compatible API; its key is OPENAI_API_KEY."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Name of the judge's model there.")
    ] = None,
) -> None:
    """Score a fine-tuned model on the paper's benchmarks, beside the published values."""
    from alignshared import InputError
    from aligntrain.evaluate import Judge, Settings, evaluate

    terminal.hide_loading()
    if (judge_url is None) != (judge_model is None):
        raise InputError(
            "a judge needs both an address and a name; give --judge-url and --judge-model."
        )
    judge = Judge(judge_url, judge_model) if judge_url and judge_model else None
    settings = Settings(
        data=data,
        limit=limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        judge=judge,
        console=notes,
    )
    terminal.show_evaluation(evaluate(checkpoint, benchmarks, settings, output=output))
