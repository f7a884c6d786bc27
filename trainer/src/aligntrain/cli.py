"""The `aligntrain` command."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def aligntrain() -> None:
    """Train a multimodal LLM on the levelled shards that `aligncurate bucket` wrote.

    Training comes with the next release: this one makes the data ready for it.
    """


def main() -> None:
    """Entry point of the `aligntrain` command."""
    app()
