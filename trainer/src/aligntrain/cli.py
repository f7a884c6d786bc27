"""`aligntrain` command and the list of its subcommands."""

from alignshared.console import command_line
from aligntrain.commands import ablate, chat, eval, export, gate, run, serve

app = command_line(
    "aligntrain",
    "Train a multimodal LLM on pairs that `aligncurate` sorted into alignment levels.",
    stopped="stopped; the same command goes on, a run with --resume.",
    commands=(
        run.run,
        run.prepare,
        run.plan,
        chat.chat,
        eval.eval,
        serve.serve,
        gate.gate,
        ablate.ablate,
        export.merge,
        export.export,
        export.convert,
    ),
)


def main() -> None:
    """Run the `aligntrain` command."""
    app()
