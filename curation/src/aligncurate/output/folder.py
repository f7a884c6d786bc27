"""Output folder of a stage: new, unfinished and resumable, or finished; never another run's.

A run writes `.run/config.json` before its first shard and removes `.run` once the manifest is
written. The configuration determines a dataset's rows; execution (workers, engine) does not, so
it is stored under `execution` and not compared. A running writer holds `.run/lock`.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.settings import CopySettings, DatasetSettings, Location
from alignshared import Dataset, InputError, Manifest, Reject, ShardInfo, Storage
from alignshared.manifest import (
    MANIFEST_FILE,
    REJECTS_FOLDER,
    RUN_FOLDER,
    read_manifest,
    write_manifest,
)
from alignshared.rejects import REJECT_SCHEMA, rejects_table
from alignshared.shards import writing_shard
from alignshared.stores.filesystems import is_remote, lies_within
from alignshared.stores.lock import acquire, release

DATA_ROOT = Path("data")
"""Relative to the working directory: `data/<name>/<stage>`."""

_CONFIG_FILE = f"{RUN_FOLDER}/config.json"
_LOCK_FILE = f"{RUN_FOLDER}/lock"

_log = logging.getLogger("aligncurate")


class OutputState(Enum):
    """State of an output folder; `BEGUN` is an unfinished run of the same configuration."""

    FRESH = "fresh"
    BEGUN = "begun"
    FINISHED = "finished"


def shard_name(index: int) -> str:
    """File name of shard `index`; the numbers have no gaps."""
    return f"shard-{index:05d}.parquet"


def newest_dataset(*stages: str) -> Dataset:
    """Return the most recently finished dataset of `stages` under `data/`.

    Raises:
        InputError: there is none.
    """
    manifests = [p for stage in stages for p in DATA_ROOT.glob(f"*/{stage}/{MANIFEST_FILE}")]
    if not manifests:
        places = " or ".join(f"{DATA_ROOT}/*/{stage}" for stage in stages)
        raise InputError(
            f"no finished dataset lies in {places} under {Path.cwd()}; name one with --input, or "
            f"run aligncurate {stages[-1]} first."
        )
    return Dataset(max(manifests, key=lambda p: p.stat().st_mtime_ns).parent)


def input_of(
    settings: DatasetSettings,
    open: Callable[[Location], Dataset] = Dataset,
    empty: str | None = None,
) -> Dataset:
    """Open a stage's input dataset, by default the newest of its stages under `data/`.

    Raises:
        InputError: the dataset is missing; or it has no rows and `empty` says what follows.
    """
    named = settings.input
    dataset = open(newest_dataset(*settings.stages).location if named is None else named)
    if empty and dataset.manifest.rows == 0:
        raise InputError(f"{dataset.location} is empty, so {empty}.")
    return dataset


def input_and_output(
    stage: str, settings: CopySettings, empty: str, open: Callable[[Location], Dataset] = Dataset
) -> tuple[Dataset, Storage]:
    """Return a stage's input dataset and its output folder, by default `stage` beside the input.

    Raises:
        InputError: the dataset is missing or empty, or the output would overwrite it.
    """
    dataset, output = input_of(settings, open, empty), settings.output
    storage = Storage(sibling_output(dataset, stage) if output is None else output)
    refuse_to_write_over(storage.location, dataset.location)
    return dataset, storage


def default_output(name: str, stage: str) -> str:
    """Return `data/<name>/<stage>`."""
    return str(DATA_ROOT / name / stage)


def sibling_output(dataset: Dataset, stage: str) -> str:
    """Return the folder `stage` beside `dataset`: `data/demo/bucket` for `data/demo/score`.

    Raises:
        InputError: the dataset is a whole object store bucket, with nothing beside it.
    """
    parent, _, _ = dataset.location.rstrip("/").rpartition("/")
    if is_remote(dataset.location) and parent.endswith(":/"):
        raise InputError(
            f"{dataset.location} is a whole bucket, so nothing can lie beside it; name a folder "
            "with --output."
        )
    return f"{parent}/{stage}"


def refuse_to_write_over(output: str, *read: str | None) -> None:
    """Raise InputError if a location in `read` is `output` or inside it, where --overwrite would
    delete it.
    """
    for place in read:
        if place is not None and lies_within(place, output):
            raise InputError(
                f"the output {output} is the input or holds it; name another folder with --output."
            )


def config_of(dataset: Dataset, workers: int, **settings: Any) -> dict[str, Any]:
    """Configuration of a stage that reads `dataset` on `workers` threads."""
    return {
        "input": dataset.location,
        "input_sha256": dataset.digest,
        **settings,
        "execution": {"workers": workers},
    }


def finished_already(
    storage: Storage, config: dict[str, Any], *, overwrite: bool
) -> Dataset | None:
    """Return (and log) the dataset in `storage` if a run of `config` has finished it; None if it
    is to be overwritten.

    Raises:
        InputError: the folder holds the result of another configuration.
    """
    if overwrite or not storage.exists(MANIFEST_FILE):
        return None
    open_output(storage, config, overwrite=False)
    _log.info("%s is finished already; nothing to do.", storage.location)
    return Dataset(storage.location)


def open_output(
    storage: Storage, config: dict[str, Any], *, overwrite: bool, marker: str = MANIFEST_FILE
) -> OutputState:
    """Claim the folder for a run of `config`, unless it already holds the finished result.

    The folder stays locked until `finish`, `release_output`, `release` or the end of the process.

    `marker` is the file written last: the manifest or, if not a dataset, another JSON file with
    the run's `config`.

    Raises:
        InputError: the folder holds something else, or is not writable.
        AlignError: another run is writing there.
    """
    try:
        if _look(storage, config, marker, overwrite=overwrite) is OutputState.FINISHED:
            return OutputState.FINISHED
        acquire(storage, _LOCK_FILE)
        try:
            return _claim(storage, config, marker, overwrite=overwrite)
        except BaseException:
            release(storage)
            raise
    except OSError as error:  # a file in its place, a read-only disk
        raise InputError(
            f"{storage.location} cannot be written to: {error}; name another folder with --output."
        ) from error


def release_output(storage: Storage) -> None:
    """Give up the claim on a folder without finished units, freeing it for other configurations."""
    if storage.names() == [RUN_FOLDER]:
        storage.delete(RUN_FOLDER)
    release(storage)


def _look(storage: Storage, config: dict[str, Any], marker: str, *, overwrite: bool) -> OutputState:
    """Return the folder's state without changing it."""
    names = storage.names()
    if names and marker not in names and RUN_FOLDER not in names:
        what = "dataset" if marker == MANIFEST_FILE else marker
        raise InputError(
            f"{storage.location} is not empty and holds no {what} ({names[0]} lies there); "
            "name an empty or new folder with --output."
        )
    if overwrite:
        return OutputState.FRESH
    if marker in names:
        finished_config, content = _finished_config(storage, marker)
        _refuse_difference(storage, finished_config, config, content)
        return OutputState.FINISHED
    if RUN_FOLDER in names and storage.exists(_CONFIG_FILE):
        begun_config = storage.read_json(_CONFIG_FILE)
        _refuse_difference(storage, begun_config, config, "holds an unfinished run")
        return OutputState.BEGUN
    return OutputState.FRESH


def _claim(
    storage: Storage, config: dict[str, Any], marker: str, *, overwrite: bool
) -> OutputState:
    """Check the state again under the lock, and write this run's configuration."""
    if overwrite:
        _empty(storage)
    state = _look(storage, config, marker, overwrite=False)
    if state is OutputState.FRESH:
        storage.write_json(_CONFIG_FILE, config)
    elif state is OutputState.BEGUN:
        storage.sweep()
    else:  # just finished by another run
        storage.delete(RUN_FOLDER)
        release(storage)
    return state


def _empty(storage: Storage) -> None:
    for name in storage.names():
        if name != RUN_FOLDER:
            storage.delete(name)
    run = storage.child(RUN_FOLDER)
    for name in run.names():
        if f"{RUN_FOLDER}/{name}" != _LOCK_FILE:
            run.delete(name)


def _finished_config(storage: Storage, marker: str) -> tuple[dict[str, Any], str]:
    """Configuration of the finished result in `storage`, and its name for messages."""
    if marker == MANIFEST_FILE:
        return read_manifest(storage).config, "holds a dataset"
    content = storage.read_json(marker)
    config = content.get("config") if isinstance(content, dict) else None
    return config if isinstance(config, dict) else {}, f"holds {marker}"


def _refuse_difference(
    storage: Storage, existing: dict[str, Any], config: dict[str, Any], content: str
) -> None:
    for name, before, now in _differences(existing, config):
        if name.split(".")[0] != "execution":
            raise InputError(
                f"{storage.location} {content} with another configuration: {name} is {before!r} "
                f"there and {now!r} here; name another --output, or give --overwrite to replace it."
            )


def _differences(
    existing: dict[str, Any], config: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Names (`input.digest`) and both values of differing settings."""
    for key in sorted(existing.keys() | config.keys()):
        before, now = existing.get(key), config.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{key}", before, now


@dataclass(frozen=True, slots=True)
class WrittenRejects:
    """Rejects of one unit: their file, if any, and counts by reason."""

    info: ShardInfo | None
    reasons: dict[str, int]


def write_rejects(storage: Storage, name: str, rejects: list[Reject]) -> WrittenRejects:
    """Write `rejects/<name>`, unless there are none."""
    if not rejects:
        return WrittenRejects(None, {})
    with writing_shard(storage, f"{REJECTS_FOLDER}/{name}", REJECT_SCHEMA) as (writer, result):
        writer.write(rejects_table(rejects))
    return WrittenRejects(result.info, dict(Counter(r.reason.value for r in rejects)))


def add_reasons(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sum counts by reason, the most frequent first."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def read_rejects(dataset: Dataset, limit: int) -> list[dict[str, str]]:
    """Return the first `limit` rejects of `dataset`, as rows of REJECT_SCHEMA."""
    rows: list[dict[str, str]] = []
    for shard in dataset.manifest.reject_shards:
        if len(rows) >= limit:
            break
        with dataset.storage.open(shard.file) as stream:
            table: pa.Table = pq.read_table(stream)
        rows += table.slice(0, limit - len(rows)).to_pylist()
    return rows


def finish(storage: Storage, manifest: Manifest) -> Dataset:
    """Write the manifest, which completes the dataset, and remove the run's notes."""
    storage.sweep()
    write_manifest(storage, manifest)
    storage.delete(RUN_FOLDER)
    release(storage)
    return Dataset(storage.location)


def provenance() -> dict[str, Any]:
    """Fields `package` and `created` of a new manifest."""
    return {
        "package": f"aligncurate {version('aligncurate')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
