"""inspect: describe a dataset from its manifest and one shard's schema, without reading rows."""

import os

from aligncurate.checks.files import UNREADABLE
from aligncurate.checks.levels import edges_of
from aligncurate.checks.manifest import is_unfinished, open_dataset
from aligncurate.output.folder import add_reasons, newest_dataset
from aligncurate.reporting.inspection import Column, Inspection
from aligncurate.reporting.lineage import ancestors
from aligncurate.reporting.summary import known_summary
from aligncurate.stages.settings import SHOWN_STAGES
from aligncurate.units.records import finished_units
from alignshared import AlignError, Dataset, InputError, Storage
from alignshared.manifest import RUN_FOLDER


def inspect(input: str | os.PathLike[str] | None = None) -> Inspection:
    """Describe the dataset `input`, by default the newest one under `data/`.

    The time does not depend on the number of rows. For an unfinished run, its progress is
    described.

    Raises:
        InputError: `input` is neither a dataset nor an unfinished run, or cannot be read.
    """
    location = newest_dataset(*SHOWN_STAGES).location if input is None else input
    storage = Storage(location)
    try:
        unfinished = is_unfinished(storage)
    except OSError as error:
        raise InputError(f"{storage.location} cannot be read: {error}.") from error
    return _unfinished(storage) if unfinished else _finished(open_dataset(location))


def _finished(dataset: Dataset) -> Inspection:
    manifest = dataset.manifest
    columns, fault = _columns(dataset)
    edges, wrong_edges = edges_of(dataset)
    known = None if wrong_edges else known_summary(dataset)
    duplicates = manifest.duplicates.shards if manifest.duplicates else []
    files = (*manifest.shards, *manifest.reject_shards, *duplicates)
    return Inspection(
        location=dataset.location,
        finished=True,
        stage=manifest.stage,
        rows=manifest.rows,
        rejects=manifest.rejects,
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in files),
        columns=columns,
        fault=fault or next((problem.text for problem in wrong_edges), None),
        model=manifest.model,
        models=manifest.models or {},
        scores=known.histogram.moment if known else None,
        duplicates=manifest.duplicates,
        edges=edges,
        levels=manifest.level_statistics or [],
        config=manifest.config,
        lineage=ancestors(dataset),
        package=manifest.package,
        created=manifest.created,
        digest=dataset.digest,
        left_out=manifest.left_out,
    )


def _columns(dataset: Dataset) -> tuple[list[Column], str | None]:
    """Columns of the first shard, or the reason they cannot be read."""
    if not dataset.manifest.shards:
        return [], None
    try:
        return [Column(field.name, str(field.type)) for field in dataset.schema], None
    except (AlignError, *UNREADABLE) as error:
        return [], str(error)


def _unfinished(storage: Storage) -> Inspection:
    records, config = [], {}
    try:
        records = list(finished_units(storage))
        config = storage.child(RUN_FOLDER).read_json("config.json")
    except (AlignError, OSError, ValueError, KeyError, TypeError):
        # A killed run may leave anything; report what is readable.
        pass
    files = [record.shard for record in records]
    files += [record.rejects.info for record in records if record.rejects.info]
    return Inspection(
        location=storage.location,
        finished=False,
        stage=None,
        rows=sum(record.shard.rows for record in records),
        rejects=add_reasons(record.rejects.reasons for record in records),
        shards=len(records),
        bytes=sum(file.bytes for file in files),
        config=config if isinstance(config, dict) else {},
    )
