"""`aligncurate ingest`."""

from typing import Annotated

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


def ingest(
    input: Annotated[
        str, typer.Option(help="LLaVA instruction data: a .json or .jsonl with conversations.")
    ],
    output: Annotated[
        str | None, typer.Option(help="Folder to write; by default data/<name>/ingest.")
    ] = None,
    image_root: ImageRootOption = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(help="Records per shard; by default 256 to 1,024, by their number."),
    ] = None,
    unit_timeout: UnitTimeoutOption = 600.0,
    retry_failed: RetryFailedOption = False,
    skip_failed: SkipFailedOption = False,
    overwrite: OverwriteOption = False,
    storage_options: StorageOption = None,
) -> None:
    """Write conversations and their images as shards for fine-tuning, unscored."""
    from aligncurate.progress import showing
    from aligncurate.stages.ingest import ingest

    with showing("ingest", None, "records", terminal.notes) as on_progress:
        dataset = ingest(
            input,
            output,
            image_root=image_root,
            shard_rows=shard_rows,
            overwrite=overwrite,
            retry_failed=retry_failed,
            skip_failed=skip_failed,
            unit_timeout=unit_timeout,
            on_progress=on_progress,
        )
    terminal.show_ingested(dataset)
