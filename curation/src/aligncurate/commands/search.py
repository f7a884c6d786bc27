"""`aligncurate search`."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aligncurate import terminal
from aligncurate.commands.options import DatasetOption, StorageOption, dataset_at
from alignshared.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from aligncurate.reporting.sheet import SearchResult


def search(
    input: DatasetOption = None,
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[
        str | None, typer.Option(help="File of an image to look for, instead of words.")
    ] = None,
    top: Annotated[int, typer.Option(help="Pairs to give.")] = 10,
    over: Annotated[
        Literal["images", "captions"], typer.Option(help="Which embeddings to compare with.")
    ] = "images",
    weights: Annotated[
        str | None,
        typer.Option(help="Where the weights that the pairs were scored with lie now, if moved."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    html: Annotated[str | None, typer.Option(help="HTML file to write, with the images.")] = None,
    storage_options: StorageOption = None,
) -> None:
    """Find the pairs nearest to a text or an image, by the CLIP that scored them."""
    from aligncurate.progress import showing
    from aligncurate.stages.search import hits_as_json, search, write_sheet

    if as_json and html is not None:
        raise InputError("--json and --html were both given; leave one of them out.")
    dataset = dataset_at(input, "bucket", "score")
    with showing("search", dataset.manifest.rows, "pairs", terminal.notes) as on_progress:
        result = search(
            dataset.location,
            text=text,
            image=image,
            top=top,
            over=over,
            weights=weights,
            on_progress=on_progress,
        )
    if as_json:
        terminal.results.print(json.dumps(hits_as_json(result), indent=2, ensure_ascii=False))
    elif html is not None:
        terminal.show_files([write_sheet(result, html)])
    else:
        terminal.results.print(_table(result))


def _table(result: "SearchResult") -> "Table":
    from rich.table import Table

    from aligncurate.reporting.format import clip_middle, clip_text, score_text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("id", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("level", justify="right")
    table.add_column("caption")
    for hit in result.hits:
        table.add_row(
            str(hit.rank),
            score_text(hit.cosine),
            clip_middle(hit.id, 40),
            score_text(hit.score),
            "" if hit.level is None else str(hit.level),
            clip_text(hit.caption or "", 60),
        )
    return table
