"""The `aligntrain` command: each subcommand parses, calls one library function and prints."""

import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import typer

from alignshared.console import (
    PrivateOption,
    PushOption,
    command_line,
    destination_of,
    near,
    notes,
    results,
    show_pushed,
)
from aligntrain import terminal
from aligntrain.model_commands import convert, export, merge, push

PhaseArgument = Annotated[
    Literal["pretrain", "finetune"],
    typer.Argument(help="pretrain: projector and level vectors; finetune: LLM, projector, gate."),
]
ModelArgument = Annotated[
    str, typer.Argument(help="A run folder, a model's own, OWNER/NAME of the Hub, or demo.")
]
LevelOption = Annotated[int | None, typer.Option(help="Force this level's vector, 1 to N.")]
GuidanceOption = Annotated[
    float, typer.Option(help="Guidance by the level; 1 is none, others take twice as long.")
]
RecipeOption = Annotated[
    str, typer.Option(help="Name of a recipe that ships (demo, vicuna-7b, ...) or a YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one key, as in --set optimizer.lr=1e-4; may be repeated."),
]
OutputOption = Annotated[
    str | None, typer.Option(help="Run folder; by default runs/<recipe>-<phase>.")
]


def run(
    phase: PhaseArgument,
    data: Annotated[
        str, typer.Option(help="Dataset: a levelled one to pretrain, an ingested one to finetune.")
    ],
    recipe: RecipeOption = "demo",
    set: SetOption = None,
    output: OutputOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest whole checkpoint.")
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
    push_to_hub: PushOption = None,
    private: PrivateOption = False,
) -> None:
    """Train one phase: into a run folder with its recipe, metrics, checkpoints and the model."""
    from aligntrain.export.push import push
    from aligntrain.train.run import run

    destination = destination_of(push_to_hub, "model", private=private)
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
        for_others=destination is not None,
    )
    terminal.show_run(done)
    if destination is not None:
        show_pushed(push(done.folder, destination))


def prepare(
    phase: PhaseArgument,
    data: Annotated[str, typer.Option(help="Dataset, as for run.")],
    recipe: RecipeOption = "demo",
    set: SetOption = None,
    output: OutputOption = None,
    start: Annotated[str | None, typer.Option("--from", help="As for run.")] = None,
) -> None:
    """Make a run folder and start nothing: torchrun or the deepspeed launcher work on it."""
    from aligntrain.train.run import prepare

    folder = prepare(
        phase, data, recipe=recipe, overrides=set or (), output=output, start=start, resume=True
    )
    results.print(near(folder))


def plan(
    phase: PhaseArgument,
    recipe: RecipeOption = "demo",
    set: SetOption = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs to plan for.")] = 1,
    data: Annotated[str | None, typer.Option(help="Dataset, for steps and tokens.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Its number of samples, where it is not at hand.")
    ] = None,
) -> None:
    """Tell what a run would need, from configurations alone: nothing is loaded."""
    from aligntrain.plan.estimate import plan

    terminal.show_plan(plan(recipe, phase, gpus=gpus, data=data, rows=rows, overrides=set or ()))


def chat(
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Option(help="The question; without it, questions are read from stdin.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="An image to talk about.")] = None,
    level: LevelOption = None,
    show_gate: Annotated[
        bool, typer.Option("--show-gate", help="Print the gate's weights after each answer.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    guidance: GuidanceOption = 1.0,
) -> None:
    """Ask a trained model about an image; the answer is printed as it is generated."""
    from aligntrain.inference.steering import check_guidance

    check_guidance(guidance)
    from aligntrain.inference.chat import Chat

    terminal.hide_loading()
    conversation = Chat.load(model)
    prompts = iter([prompt]) if prompt is not None else _prompts()
    shown = image
    for question in prompts:
        answer = conversation.answer(
            question,
            shown,
            level=level,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            guidance=guidance,
        )
        for piece in answer:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        if show_gate:
            terminal.show_gate(conversation.gate_weights)
        shown = None  # kept in the conversation


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


def caption(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="Dataset of image-text pairs.")],
    output: Annotated[str, typer.Option(help="Folder of the new dataset.")],
    level: Annotated[
        int | None, typer.Option(help="Force this level's vector; by default the top level's.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Request to a fine-tuned model; by default for a short caption."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest caption, in tokens.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Images captioned together.")] = 8,
    guidance: GuidanceOption = 1.0,
) -> None:
    """Write new captions for the images of a dataset, as a dataset that keeps the old ones."""
    from aligntrain.captioning.caption import CaptionSettings, caption_dataset

    terminal.hide_loading()
    settings = CaptionSettings(level, prompt, max_new_tokens, batch_size, guidance, console=notes)
    terminal.show_captions(caption_dataset(model, data, output, settings))


def eval(
    checkpoint: ModelArgument,
    benchmarks: Annotated[
        str, typer.Option(help="Comma-separated names, as in pope,mme,gqa; paper for all twelve.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Folder of the benchmarks' files, instead of the Hub.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of answers and scores; CHECKPOINT/eval by default.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare with another model, or the folder of an evaluation."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Ask only the first questions of each benchmark.")
    ] = None,
    level: LevelOption = None,
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
    from aligntrain.evaluate import Judge, Settings, check_against, compare, evaluate

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
        level=level,
        batch_size=batch_size,
        judge=judge,
        console=notes,
    )
    if against is not None:
        check_against(against, checkpoint, benchmarks, settings, output)
    done = evaluate(checkpoint, benchmarks, settings, output=output)
    terminal.show_evaluation(done)
    if against is not None:
        terminal.show_comparisons(compare(done, against, benchmarks, settings))


def serve(
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Model name for clients; by default the folder's name.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="ALIGNTRAIN_API_KEY", help="Require this API key.")
    ] = None,
    allow_image_urls: Annotated[
        bool,
        typer.Option(
            "--allow-image-urls", help="Fetch images from public http and https addresses."
        ),
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Let web pages of this origin ask (CORS); * is any. May be repeated."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Answer at this host name too, without a key. May be repeated."),
    ] = None,
    level: Annotated[
        int | None, typer.Option(help="Level of requests that name none, 1 to N.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Maximum answers decoded together.")] = 16,
    max_total_tokens: Annotated[
        int | None,
        typer.Option(
            help="Maximum tokens of answers decoded together, rows times the longest; by default "
            "by the free memory."
        ),
    ] = None,
    queue: Annotated[int, typer.Option(help="Maximum requests in the queue.")] = 128,
    timeout: Annotated[float, typer.Option(help="Time limit of a request, in seconds.")] = 300.0,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 1024,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens of a prompt; by default the model's context.")
    ] = None,
    max_images: Annotated[int, typer.Option(help="Maximum images of a request.")] = 8,
    max_pixels: Annotated[
        float, typer.Option(help="Maximum size of an image, in megapixels.")
    ] = 50,
    max_body: Annotated[float, typer.Option(help="Maximum size of a request, in megabytes.")] = 20,
) -> None:
    """Serve a trained model: an OpenAI-compatible chat endpoint and a web page."""
    from aligntrain.serve import Limits, Settings, serve

    limits = Limits(
        body=round(max_body * 1e6),
        images=max_images,
        pixels=round(max_pixels * 1e6),
        prompt_tokens=max_prompt_tokens,
        new_tokens=max_new_tokens,
        rows=batch,
        total_tokens=max_total_tokens,
        queue=queue,
        timeout=timeout,
    )
    terminal.hide_loading()
    settings = Settings(
        host,
        port,
        api_key,
        name,
        allow_image_urls,
        limits,
        level=level,
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
    )
    say = "{} answers: {}/v1 for OpenAI's clients, {} for a browser"
    serve(model, settings, ready=lambda name, url: results.print(say.format(name, url, url)))


def gate(
    checkpoint: ModelArgument,
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


def ablate(
    design: Annotated[
        str, typer.Argument(help="A built-in ablation (demo, paper) or a YAML file.")
    ] = "demo",
    pretrain_data: Annotated[
        str, typer.Option(help="Levelled pairs to pretrain on.")
    ] = "data/demo/bucket",
    finetune_data: Annotated[
        str, typer.Option(help="Conversations to fine-tune on.")
    ] = "data/demo/ingest",
    questions: Annotated[
        str | None,
        typer.Option(
            help="JSON of held-out questions; by default those used before, or held-out rows."
        ),
    ] = None,
    kinds: Annotated[
        list[str] | None, typer.Option(help="Ask only questions of this kind; may be repeated.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder; by default runs/ablation-<name>.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to use instead of the ablation's own.")
    ] = None,
    set: SetOption = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds; by default the ablation's own.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Train only this variant and the baseline; may be repeated."),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Processes per run; by default one per GPU, or one.")
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the weights of every run.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the runs and their time; start nothing.")
    ] = False,
) -> None:
    """Train variants of a recipe over several seeds and test their differences for significance."""
    from aligntrain.ablation.runner import ablate, open_ablation

    ablation = open_ablation(
        design,
        pretrain_data,
        finetune_data,
        output=output,
        recipe=recipe,
        overrides=set or (),
        seeds=seeds,
        only=only or (),
    )
    if plan:
        terminal.show_planned(ablation)
        return
    terminal.hide_loading()
    outcome = ablate(
        ablation,
        questions=questions,
        kinds=kinds or (),
        nproc=nproc,
        keep_models=keep_models,
        progress=terminal.counting,
    )
    terminal.show_outcome(outcome)


app = command_line(
    "aligntrain",
    "Train a multimodal LLM on pairs that `aligncurate` sorted into alignment levels.",
    stopped="stopped; the same command continues, a run with --resume.",
    commands=(
        run, prepare, plan, chat, serve, caption, eval, gate, ablate, merge, export, convert, push
    ),
)  # fmt: skip


def main() -> None:
    """Run the `aligntrain` command."""
    app()
