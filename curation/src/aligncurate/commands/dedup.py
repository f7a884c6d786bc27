"""`aligncurate dedup`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aligncurate import terminal
from aligncurate.commands.options import (
    DatasetOption,
    OutputOption,
    OverwriteOption,
    StorageOption,
    dataset_at,
)

if TYPE_CHECKING:
    from alignshared import Dataset


def dedup(
    input: DatasetOption = None,
    output: OutputOption = None,
    threshold: Annotated[
        float, typer.Option(help="Least cosine of the image embeddings of near duplicates.")
    ] = 0.99,
    keep: Annotated[
        Literal["best", "first"],
        typer.Option(help="Which pair stays: the best scored, or the first in the dataset."),
    ] = "best",
    exact_only: Annotated[
        bool,
        typer.Option("--exact-only", help="Only images of the same bytes; no embeddings needed."),
    ] = False,
    chains: Annotated[
        Literal["split", "whole"],
        typer.Option(
            help="Of A near B near C: split leaves out pairs near to the one that stays, whole all "
            "but one."
        ),
    ] = "split",
    recall: Annotated[
        float,
        typer.Option(help="Least share of near pairs to find, where not all are compared."),
    ] = 0.99,
    workers: Annotated[int | None, typer.Option(help="Threads; by default one per core.")] = None,
    overwrite: OverwriteOption = False,
    storage_options: StorageOption = None,
) -> None:
    """Leave out pairs whose image another pair has: the same bytes, or near by CLIP."""
    from aligncurate.progress import showing
    from aligncurate.stages.dedup import dedup

    dataset = dataset_at(input, "bucket", "score")
    total = dataset.manifest.rows * (2 if exact_only else 3)
    with showing("dedup", total, "rows", terminal.notes) as on_progress:
        made = dedup(
            dataset.location,
            output,
            threshold=threshold,
            keep=keep,
            exact_only=exact_only,
            chains=chains,
            recall=recall,
            workers=workers,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    _show(made)


def _show(dataset: "Dataset") -> None:
    manifest = dataset.manifest
    found, where = manifest.duplicates, terminal.near(dataset.location)
    if found is None:  # other stages' datasets were refused before
        return
    terminal.results.print(
        f"{where}: {manifest.rows + manifest.left_out:,} pairs in = {manifest.rows:,} kept + "
        f"{manifest.left_out:,} duplicates + {manifest.reject_count:,} rejects"
    )
    terminal.results.print(f"  {found.exact:,} exact, {found.near:,} near; see {where}/duplicates")
    if found.clusters:
        terminal.results.print(
            f"  {found.clusters:,} kept pairs stand for others, the most for {found.largest - 1:,}"
        )
    if found.search and found.search["method"] == "ivf":
        terminal.results.print(f"  {found.search['recall']:.1%} of near pairs found, on a sample")
    terminal.show_next("report", dataset.location)
