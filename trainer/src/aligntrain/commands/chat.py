"""`aligntrain chat`."""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from alignshared.console import notes
from aligntrain import terminal


def chat(
    model: Annotated[str, typer.Argument(help="A run folder, or a model's own.")],
    prompt: Annotated[
        str | None, typer.Option(help="The question; without it, questions are read from stdin.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="A picture to talk about.")] = None,
    level: Annotated[int | None, typer.Option(help="Force this level's vector, 1 to N.")] = None,
    show_gate: Annotated[
        bool, typer.Option("--show-gate", help="Print the gate's weights after each answer.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
) -> None:
    """Ask a trained model about a picture; the answer comes as it is written."""
    from aligntrain.inference.chat import Chat

    terminal.hide_loading()
    conversation = Chat.load(model)
    prompts = iter([prompt]) if prompt is not None else _prompts()
    picture = image
    for question in prompts:
        answer = conversation.answer(
            question, picture, level=level, max_new_tokens=max_new_tokens, temperature=temperature
        )
        for piece in answer:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        if show_gate:
            terminal.show_gate(conversation.gate_weights)
        picture = None  # kept in the conversation


def _prompts() -> Iterator[str]:
    """Yield questions from stdin until it ends, with a prompt on a terminal."""
    while True:
        if sys.stdin.isatty():
            notes.print("> ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
