"""The `aligntrain` command: parse, call one library function, print what came of it.

Nothing heavy is imported at the top, so that `--help` answers at once.
"""

import logging
import sys
from importlib.metadata import version
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from alignshared.errors import AlignError
from aligntrain import terminal

_INTERRUPTED = 130
"""What shells answer for a command that Ctrl-C stopped."""


class _Commands(TyperGroup):
    """Turns what users can meet into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AlignError as error:
            if ctx.params["debug"]:
                raise
            terminal.show_error(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # a full disk, a lost network drive
            if ctx.params["debug"]:
                raise
            terminal.show_error(f"{error}; see where with aligntrain --debug.")
            raise typer.Exit(AlignError.exit_code) from error
        except KeyboardInterrupt as error:
            terminal.show_error("stopped; the same command with --resume goes on.")
            raise typer.Exit(_INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, drawn in half the time
    context_settings={"help_option_names": ["--help", "-h"]},
)

_Phase = Annotated[
    Literal["pretrain", "finetune"],
    typer.Argument(help="pretrain: projector and level vectors; finetune: LLM, projector, gate."),
]
_Recipe = Annotated[
    str, typer.Option(help="Name of a recipe that ships (demo, vicuna-7b, ...) or a YAML file.")
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one key, as in --set optimizer.lr=1e-4; may be repeated."),
]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"aligntrain {version('aligntrain')}")
        raise typer.Exit


@app.callback()
def aligntrain(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Train a multimodal LLM on pairs that `aligncurate` sorted into alignment levels."""
    terminal.show_log(logging.DEBUG if debug else logging.INFO)


@app.command()
def run(
    phase: _Phase,
    data: Annotated[
        str,
        typer.Option(help="Dataset: a levelled one to pretrain, an ingested one to finetune."),
    ],
    recipe: _Recipe = "demo",
    set: _Set = None,
    output: Annotated[
        str | None, typer.Option(help="Run folder; by default runs/<recipe>-<phase>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")
    ] = False,
    nproc: Annotated[
        int | None, typer.Option(help="Processes; by default one per GPU, or one.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="What to fine-tune from: a run, a merged model, an adapter file, or none. By "
            "default the newest finished pretrain run beside the output.",
        ),
    ] = None,
    profile: Annotated[
        int | None, typer.Option(help="Profile so many steps, into the run folder.")
    ] = None,
) -> None:
    """Train one phase: into a run folder with its recipe, metrics, checkpoints and the model."""
    from aligntrain.run import run

    done = run(
        phase,
        data,
        recipe=recipe,
        overrides=set or (),
        output=output,
        resume=resume,
        nproc=nproc,
        start=start,
        profile=profile,
    )
    terminal.show_run(done)


@app.command()
def prepare(
    phase: _Phase,
    data: Annotated[str, typer.Option(help="Dataset, as for run.")],
    recipe: _Recipe = "demo",
    set: _Set = None,
    output: Annotated[
        str | None, typer.Option(help="Run folder; by default runs/<recipe>-<phase>.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="As for run.")] = None,
) -> None:
    """Make a run folder and start nothing: torchrun or the deepspeed launcher work on it."""
    from aligntrain.run import prepare

    folder = prepare(
        phase, data, recipe=recipe, overrides=set or (), output=output, start=start, resume=True
    )
    terminal.results.print(terminal.near(folder))


@app.command()
def plan(
    phase: _Phase,
    recipe: _Recipe = "demo",
    set: _Set = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs to plan for.")] = 1,
    data: Annotated[str | None, typer.Option(help="Dataset, for steps and tokens.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Its number of samples, where it is not at hand.")
    ] = None,
) -> None:
    """Tell what a run would need, from configurations alone: nothing is loaded."""
    from aligntrain.plan import plan

    terminal.show_plan(plan(recipe, phase, gpus=gpus, data=data, rows=rows, overrides=set or ()))


@app.command()
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
    from aligntrain.chat import Chat

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
        picture = None  # it stays in the conversation


@app.command()
def merge(
    run: Annotated[str, typer.Argument(help="The folder of a LoRA run.")],
    output: Annotated[str, typer.Argument(help="Folder to write.")],
) -> None:
    """Add what a LoRA run has learned to the LLM's own weights and write the whole model."""
    from aligntrain.merge import merge

    terminal.hide_loading()
    terminal.show_merged(merge(run, output))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="The authors' file or checkpoint folder.")],
    output: Annotated[str, typer.Argument(help="Folder to write.")],
    vision_tower: Annotated[
        str | None, typer.Option(help="By default the one that the source's config names.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="By default the one that the source's config names.")
    ] = None,
) -> None:
    """Read AlignGPT's or LLaVA-1.5's own files and write a model in transformers' form."""
    from aligntrain.convert import convert

    terminal.hide_loading()
    terminal.show_converted(convert(source, output, vision_tower=vision_tower, llm=llm))


def _prompts() -> Any:
    """Questions from stdin, with a prompt on a terminal, until it ends."""
    while True:
        if sys.stdin.isatty():
            terminal.notes.print("> ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def main() -> None:
    """Entry point of the `aligntrain` command."""
    app()
