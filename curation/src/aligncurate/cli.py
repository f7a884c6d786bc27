"""The `aligncurate` command: parse, call one library function, print what came of it.

Nothing heavy is imported at the top, so that `--help` answers at once.
"""

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from aligncurate import terminal
from alignshared.errors import AlignError

if TYPE_CHECKING:
    from alignshared import Dataset

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
            terminal.show_error(f"{error}; see where with aligncurate --debug.")
            raise typer.Exit(AlignError.exit_code) from error
        except KeyboardInterrupt as error:
            terminal.show_error("stopped; run the same command to go on.")
            raise typer.Exit(_INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes as long to draw the help as Python to start
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"aligncurate {version('aligncurate')}")
        raise typer.Exit


@app.callback()
def aligncurate(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Score image-text pairs with CLIP, sort them into alignment levels, report on them."""
    terminal.show_log(logging.DEBUG if debug else logging.INFO)


_Dataset = Annotated[
    str | None, typer.Option(help="Dataset to read; by default the newest that fits in data/.")
]
_Output = Annotated[
    str | None, typer.Option(help="Folder to write; by default a sibling of the input.")
]
_ImageRoot = Annotated[
    str | None,
    typer.Option(help="Folder that pictures' paths start from; by default the input's own."),
]
_Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the dataset or unfinished run in the output.")
]


@app.command()
def score(
    input: Annotated[
        str,
        typer.Option(
            help="demo, laion-cc-sbu, a LLaVA .json or .jsonl, or a file, folder or glob of Parquet"
        ),
    ],
    output: Annotated[
        str | None, typer.Option(help="Folder to write; by default data/<name>/score.")
    ] = None,
    image_root: _ImageRoot = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="open_clip architecture, hf-hub: name, folder, or demo. By default demo for the "
            "demo pairs, else ViT-L-14-336."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Pretrained tag or weights file of an architecture; by default openai."),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="auto: fp32 on CPU, bf16 on GPU."),
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs per forward pass; by default 64 on CPU, 256 on GPU.")
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(help="Pairs per shard; by default what suits their number.")
    ] = None,
    engine: Annotated[
        Literal["auto", "local", "ray"],
        typer.Option(help="auto: this process for small inputs on one device, else Ray."),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes or threads on CPU; by default one per core.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs to use; by default all, 0 for none.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, or auto; by default a local one.")
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also write both embeddings, float16.")
    ] = False,
    overwrite: _Overwrite = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Ray's own log.")] = False,
) -> None:
    """Score pairs: write each with the cosine of its image and caption under CLIP."""
    from aligncurate.progress import showing
    from aligncurate.stages.score import Execution, score

    execution = Execution(engine, workers, gpus, ray_address, verbose)
    dataset = score(
        input,
        output,
        image_root=image_root,
        model=model,
        weights=weights,
        precision=precision,
        batch_size=batch_size,
        shard_rows=shard_rows,
        embeddings=embeddings,
        overwrite=overwrite,
        execution=execution,
        show_progress=lambda task, total, begun: showing(
            task, total, "pairs", terminal.progress, begun
        ),
    )
    terminal.show_scored(dataset)


@app.command()
def ingest(
    input: Annotated[
        str, typer.Option(help="LLaVA instruction data: a .json or .jsonl with conversations.")
    ],
    output: Annotated[
        str | None, typer.Option(help="Folder to write; by default data/<name>/ingest.")
    ] = None,
    image_root: _ImageRoot = None,
    shard_rows: Annotated[
        int | None, typer.Option(help="Records per shard; by default what suits their number.")
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Write conversations and their pictures as shards for fine-tuning, unscored."""
    from aligncurate.progress import showing
    from aligncurate.stages.ingest import ingest

    with showing("ingest", None, "records", terminal.progress) as on_progress:
        dataset = ingest(
            input,
            output,
            image_root=image_root,
            shard_rows=shard_rows,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    terminal.show_ingested(dataset)


@app.command()
def bucket(
    input: _Dataset = None,
    output: _Output = None,
    levels: Annotated[int | None, typer.Option(help="Number of levels; 8 by default.")] = None,
    edges: Annotated[
        str | None,
        typer.Option(help="levels.json of an earlier run: put these pairs on its edges."),
    ] = None,
    scheme: Annotated[
        Literal["quantile", "equal-width"],
        typer.Option(help="Levels of equal size, or of equal width in score."),
    ] = "quantile",
    workers: Annotated[int | None, typer.Option(help="Threads; by default one per core.")] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Sort scored pairs into alignment levels by exact quantiles of their scores."""
    from aligncurate.progress import showing
    from aligncurate.stages.bucket import bucket
    from aligncurate.stages.inspect import inspect

    scored = _dataset(input, "score")
    with showing("bucket", scored.manifest.rows, "pairs", terminal.progress) as on_progress:
        dataset = bucket(
            scored.location,
            output,
            levels=levels,
            edges=edges,
            scheme=scheme,
            workers=workers,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    terminal.show_levels(inspect(dataset.location))


@app.command()
def report(
    input: _Dataset = None,
    output: _Output = None,
    examples: Annotated[int, typer.Option(help="Example pairs of each level.")] = 8,
) -> None:
    """Draw the scores, the levels, example pairs and rejects as one HTML file and as PNG."""
    from aligncurate.progress import showing
    from aligncurate.stages.report import report

    dataset = _dataset(input, "bucket", "score")
    with showing("report", 2 * dataset.manifest.rows, "pairs", terminal.progress) as on_progress:
        files = report(dataset.location, output, examples=examples, on_progress=on_progress)
    terminal.show_files([files.page, files.histogram, files.levels, files.gallery])


@app.command()
def inspect(input: _Dataset = None) -> None:
    """Tell what is in a dataset, from its manifest."""
    from aligncurate.stages.inspect import inspect

    # Not opened as a dataset if it is named: an unfinished run can be inspected too.
    terminal.show_inspection(inspect(input or _dataset(None, "bucket", "score").location))


@app.command()
def validate(input: _Dataset = None) -> None:
    """Check that a dataset keeps the contract: checksums, columns, ids, counts, levels."""
    from aligncurate.progress import showing
    from aligncurate.stages.validate import validate

    dataset = _dataset(input, "bucket", "score")
    with showing("validate", dataset.manifest.rows, "pairs", terminal.progress) as on_progress:
        found = validate(dataset.location, on_progress=on_progress)
    terminal.show_validation(found)
    if not found.ok:
        raise typer.Exit(2)


def _dataset(input: str | None, *stages: str) -> "Dataset":
    from aligncurate.places import newest_dataset
    from alignshared import Dataset

    if input is not None:
        return Dataset(input)
    dataset = newest_dataset(*stages)
    logging.getLogger("aligncurate").info("reading %s.", terminal.near(dataset.location))
    return dataset


def main() -> None:
    """Entry point of the `aligncurate` command."""
    app()
