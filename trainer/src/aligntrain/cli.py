"""`aligntrain` command and the list of its subcommands."""

from alignshared.console import command_line
from aligntrain.commands import (
    ablate,
    chat,
    convert,
    eval,
    export,
    gate,
    merge,
    plan,
    prepare,
    run,
    serve,
)

app = command_line(
    "aligntrain",
    "Train a multimodal LLM on pairs that `aligncurate` sorted into alignment levels.",
    stopped="stopped; the same command goes on, a run with --resume.",
    commands=(
        run.run,
        prepare.prepare,
        plan.plan,
        chat.chat,
        eval.eval,
        serve.serve,
        gate.gate,
        ablate.ablate,
        merge.merge,
        export.export,
        convert.convert,
    ),
)


def main() -> None:
    """Run the `aligntrain` command."""
    app()
