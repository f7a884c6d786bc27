"""`aligncurate score`."""

from typing import Annotated, Literal

import typer

from aligncurate import terminal
from aligncurate.commands.options import (
    ImageRootOption,
    OverwriteOption,
    RetryFailedOption,
    SkipFailedOption,
    StorageOption,
    UnitTimeoutOption,
)


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
        list[str] | None,
        typer.Option(
            help="open_clip architecture, hf-hub: name, folder, or demo. By default demo for the "
            "demo pairs, else ViT-L-14-336. Given several times, as MODEL or NAME=MODEL, each "
            "writes score_NAME."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Pretrained tag or weights file of an architecture; by default openai. With "
            "several models NAME=WEIGHTS."
        ),
    ] = None,
    main: Annotated[
        str | None,
        typer.Option(help="Which of several models is behind score; by default the first."),
    ] = None,
    view: Annotated[
        Literal["crop", "pad"] | None,
        typer.Option(
            help="Crop a picture's centre, or pad it to a square; by default the model's own way."
        ),
    ] = None,
    long_captions: Annotated[
        Literal["truncate", "mean"],
        typer.Option(help="Cut captions that are too long, or take the mean of their windows."),
    ] = "truncate",
    decode: Annotated[
        Literal["exact", "fast"],
        typer.Option(help="fast: decode JPEGs much larger than the model's input at less scale."),
    ] = "exact",
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
        str | None,
        typer.Option(help="Processes or threads on CPU, or a range, 2..8; else one per core."),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs to use, or a range; by default all, 0 for none.")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(help="Share of a GPU for each model: 0.5 puts two on one.")
    ] = 1.0,
    memory_per_worker: Annotated[
        float | None, typer.Option(help="GiB that Ray sets aside for each model.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, or auto; by default a local one.")
    ] = None,
    unit_timeout: UnitTimeoutOption = 600.0,
    retry_failed: RetryFailedOption = False,
    skip_failed: SkipFailedOption = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also write both embeddings, float16.")
    ] = False,
    overwrite: OverwriteOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Ray's own log.")] = False,
    storage_options: StorageOption = None,
) -> None:
    """Score pairs: write each with the cosine of its image and caption under CLIP."""
    from aligncurate.progress import showing
    from aligncurate.scoring.execution import Execution
    from aligncurate.stages.score import score

    execution = Execution(
        engine,
        workers,
        gpus,
        ray_address,
        verbose,
        gpus_per_worker,
        memory_per_worker,
        unit_timeout,
    )
    dataset = score(
        input,
        output,
        image_root=image_root,
        model=model,
        weights=weights,
        main=main,
        view=view,
        long_captions=long_captions,
        decode=decode,
        precision=precision,
        batch_size=batch_size,
        shard_rows=shard_rows,
        embeddings=embeddings,
        overwrite=overwrite,
        retry_failed=retry_failed,
        skip_failed=skip_failed,
        execution=execution,
        show_progress=lambda task, total, begun: showing(
            task, total, "pairs", terminal.notes, begun
        ),
    )
    terminal.show_scored(dataset)
