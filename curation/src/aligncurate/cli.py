"""The `aligncurate` command: its subcommands, each with the options of its stage's settings."""

import json
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from aligncurate import terminal
from aligncurate.options import dataset_of, options_from, reading
from aligncurate.settings import OnProgress, arguments_of
from aligncurate.stages.settings import (
    BucketSettings,
    DedupSettings,
    ExportSettings,
    FilterSettings,
    IngestSettings,
    ReportSettings,
    SampleSettings,
    ScoreSettings,
    SearchSettings,
    ValidateSettings,
)
from alignshared.console import (
    DryRunOption,
    PrivateOption,
    PushOption,
    RepoArgument,
    command_line,
    destination_of,
    show_pushed,
)
from alignshared.errors import InputError


@options_from(ScoreSettings)
def score(settings: ScoreSettings) -> None:
    """Score pairs: write each with the cosine of its image and caption under CLIP."""
    from aligncurate.stages.score import score

    def show_progress(task: str, total: int, done: int) -> AbstractContextManager[OnProgress]:
        return terminal.showing(task, total, "pairs", done)

    terminal.show_scored(score(**arguments_of(settings, show_progress=show_progress)))


@options_from(IngestSettings)
def ingest(settings: IngestSettings) -> None:
    """Write conversations and their images as shards for fine-tuning, unscored."""
    from aligncurate.stages.ingest import ingest

    with terminal.showing("ingest", None, "records") as on_progress:
        dataset = ingest(**arguments_of(settings, on_progress=on_progress))
    terminal.show_sum(dataset, "records", "ingested")


@options_from(BucketSettings)
def bucket(settings: BucketSettings) -> None:
    """Sort scored pairs into alignment levels by exact quantiles of their scores."""
    from aligncurate.stages.bucket import bucket
    from aligncurate.stages.inspect import inspect

    with reading(settings, "bucket") as arguments:
        dataset = bucket(**arguments)
    terminal.show_levels(inspect(dataset.location))


@options_from(FilterSettings)
def filter(
    settings: FilterSettings,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be kept; write nothing.")
    ] = False,
) -> None:
    """Keep the pairs that meet all of the conditions given; bounds are inclusive."""
    from aligncurate.stages.filter import count_filter, filter

    if dry_run:
        with reading(settings, "filter") as arguments:
            names = ("conditions", "input", "workers", "on_progress")
            counts = count_filter(**{name: arguments[name] for name in names})
        terminal.show_filter_counts(counts)
    else:
        with reading(settings, "filter", passes=2) as arguments:
            dataset = filter(**arguments)
        terminal.show_filtered(dataset)


@options_from(SampleSettings)
def sample(settings: SampleSettings) -> None:
    """Draw pairs evenly from all levels: the same ones every time, by id and seed alone."""
    from aligncurate.stages.sample import sample

    with reading(settings, "sample", passes=2) as arguments:
        dataset = sample(**arguments)
    terminal.show_sample(dataset)


@options_from(DedupSettings)
def dedup(settings: DedupSettings) -> None:
    """Leave out pairs whose image another pair has: the same bytes, or near by CLIP."""
    from aligncurate.stages.dedup import dedup

    passes = 2 if settings.exact_only else 3
    with reading(settings, "dedup", passes, "rows") as arguments:
        dataset = dedup(**arguments)
    terminal.show_deduplicated(dataset)


@options_from(SearchSettings)
def search(
    settings: SearchSettings,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    html: Annotated[str | None, typer.Option(help="HTML file to write, with the images.")] = None,
) -> None:
    """Find the pairs nearest to a text or an image, by the CLIP that scored them."""
    from aligncurate.stages.search import hits_as_json, search, write_sheet

    if as_json and html is not None:
        raise InputError("--json and --html were both given; leave one of them out.")
    with reading(settings, "search") as arguments:
        result = search(**arguments)
    if as_json:
        terminal.results.print(json.dumps(hits_as_json(result), indent=2, ensure_ascii=False))
    elif html is not None:
        terminal.show_files([write_sheet(result, html)])
    else:
        terminal.show_hits(result)


@options_from(ReportSettings)
def report(settings: ReportSettings) -> None:
    """Draw the scores, the levels, example pairs and rejects as one HTML file and as PNG."""
    from aligncurate.stages.report import report
    from alignshared import Dataset

    others = 0 if settings.against is None else Dataset(settings.against).manifest.rows
    with reading(settings, "report", others=others) as arguments:
        files = report(**arguments)
    for sentence in files.drift.sentences if files.drift else ():
        terminal.results.print(sentence)
    drift = files.drift.figure if files.drift else None
    terminal.show_files([files.page, files.histogram, files.levels, files.gallery, drift])


@options_from(ExportSettings)
def export(
    settings: ExportSettings, *, push_to_hub: PushOption = None, private: PrivateOption = False
) -> None:
    """Write a dataset as LLaVA JSON, WebDataset tars, or a folder for Hugging Face datasets."""
    from aligncurate.stages.export import export
    from aligncurate.stages.push import check_pushable, push

    if push_to_hub is not None:
        check_pushable(settings.format, settings.output or settings.input)
    destination = destination_of(push_to_hub, "dataset", private=private)
    with reading(settings, "export") as arguments:
        written = export(**arguments)
    terminal.show_export(written)
    if destination is not None:
        show_pushed(push(written.location, destination))


def push(
    export: Annotated[str, typer.Argument(help="The folder of a finished export.")],
    repo: RepoArgument,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Upload an export to the Hugging Face Hub; score --input hf://datasets/… reads it there."""
    from aligncurate.stages.push import push
    from alignshared.hub import Destination

    show_pushed(push(export, Destination(repo, "dataset", private), dry_run=dry_run))


@options_from(ValidateSettings)
def inspect(settings: ValidateSettings) -> None:
    """Tell what is in a dataset, from its manifest."""
    from aligncurate.stages.inspect import inspect

    # Not opened as a dataset if given: unfinished runs can be inspected too.
    terminal.show_inspection(inspect(settings.input or dataset_of(settings).location))


@options_from(ValidateSettings)
def validate(settings: ValidateSettings) -> None:
    """Check that a dataset keeps the contract: checksums, columns, ids, counts, levels."""
    from aligncurate.stages.validate import validate

    with reading(settings, "validate") as arguments:
        found = validate(**arguments)
    terminal.show_validation(found)
    if not found.ok:
        raise typer.Exit(2)


app = command_line(
    "aligncurate",
    "Score image-text pairs with CLIP, sort them into alignment levels, report on them.",
    stopped="stopped; run the same command to resume.",
    commands=(
        score, ingest, bucket, filter, sample, dedup, search, report, export, push, inspect,
        validate,
    ),
)  # fmt: skip


def main() -> None:
    """Entry point of the `aligncurate` command."""
    app()
