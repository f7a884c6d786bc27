"""`aligncurate export`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aligncurate import terminal
from aligncurate.commands.options import DatasetOption, OutputOption, StorageOption, dataset_at

if TYPE_CHECKING:
    from aligncurate.stages.export import Export


def export(
    format: Annotated[
        Literal["llava", "webdataset", "hf"],
        typer.Option(help="LLaVA JSON with images, WebDataset tars, or Hugging Face datasets."),
    ],
    input: DatasetOption = None,
    output: OutputOption = None,
    pairs_per_file: Annotated[
        int | None,
        typer.Option(help="Pairs in a tar or Parquet file, or in a folder of images."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; by default one per core.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the export in the output.")
    ] = False,
    storage_options: StorageOption = None,
) -> None:
    """Write a dataset as LLaVA JSON, WebDataset tars, or a folder for Hugging Face datasets."""
    from aligncurate.progress import showing
    from aligncurate.stages.export import EXPORTED_STAGES, export

    dataset = dataset_at(input, *EXPORTED_STAGES)
    with showing("export", dataset.manifest.rows, "pairs", terminal.notes) as on_progress:
        done = export(
            dataset.location,
            output,
            format=format,
            pairs_per_file=pairs_per_file,
            workers=workers,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    _show(done)


def _show(done: "Export") -> None:
    """Print the size and location of the export."""
    from aligncurate.reporting.format import bytes_text, count_text

    size = sum(file.bytes for file in done.files)
    beside = f" and {count_text(done.pictures, 'picture')} beside" if done.pictures else ""
    terminal.results.print(
        f"{terminal.near(done.location)}: {count_text(done.rows, 'pair')} in "
        f"{count_text(len(done.files), 'file')}, {bytes_text(size)}{beside}"
    )
    if done.without_picture:
        terminal.results.print(f"  {done.without_picture:,} of them without a picture")
