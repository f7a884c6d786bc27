"""The `aligncurate` command and the list of its subcommands."""

from aligncurate.commands import (
    bucket,
    dedup,
    export,
    filter,
    ingest,
    inspect,
    report,
    sample,
    score,
    search,
    validate,
)
from alignshared.console import command_line

app = command_line(
    "aligncurate",
    "Score image-text pairs with CLIP, sort them into alignment levels, report on them.",
    stopped="stopped; run the same command to go on.",
    commands=(
        score.score,
        ingest.ingest,
        bucket.bucket,
        filter.filter,
        sample.sample,
        dedup.dedup,
        search.search,
        report.report,
        export.export,
        inspect.inspect,
        validate.validate,
    ),
)


def main() -> None:
    """Entry point of the `aligncurate` command."""
    app()
