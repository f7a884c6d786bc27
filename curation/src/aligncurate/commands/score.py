"""`aligncurate score`."""

from typing import Annotated, Literal

import typer

from aligncurate import terminal
from aligncurate.commands.options import ImageRootOption, OverwriteOption, StorageOption


def score(
    input: Annotated[
        str,
        typer.Option(
            help="demo, laion-cc-sbu, a LLaVA .json or .jsonl, Parquet or WebDataset tars (file, "
            "folder, glob), or a folder of pictures; on disk, s3://, gs://, hf://datasets/."
        ),
    ],
    output: Annotated[
        str | None, typer.Option(help="Folder to write; by default data/<name>/score.")
    ] = None,
    image_root: ImageRootOption = None,
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
    overwrite: OverwriteOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Ray's own log.")] = False,
    storage_options: StorageOption = None,
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
