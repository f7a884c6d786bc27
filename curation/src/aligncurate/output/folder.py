"""The folder that a stage writes: fresh, to be gone on with, or finished; never another run's.

A run leaves `.run/config.json` before its first shard and removes `.run` when the manifest is
written. What decides the rows of a dataset is its configuration; how it was executed (workers,
engine) does not, so that stands apart under `execution` and is not compared. While a run writes it
holds `.run/lock`, so a folder has one writer.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.output.lock import hold, let_go
from alignshared import Dataset, InputError, Manifest, Reject, ShardInfo, Storage
from alignshared.atomic import UNFINISHED
from alignshared.manifest import MANIFEST_FILE, REJECTS_FOLDER, read_manifest, write_manifest
from alignshared.rejects import REJECT_SCHEMA, rejects_table
from alignshared.shards import writing_shard

RUN_FOLDER = ".run"
_CONFIG_FILE = f"{RUN_FOLDER}/config.json"
_LOCK_FILE = f"{RUN_FOLDER}/lock"
_OLD_TEMPORARY = ".tmp"  # of runs that an older version began


class OutputState(Enum):
    """What was found in the output folder; `BEGUN` is our own unfinished run."""

    FRESH = "fresh"
    BEGUN = "begun"
    FINISHED = "finished"


def shard_name(index: int) -> str:
    """File name of shard `index`; the numbers have no gaps."""
    return f"shard-{index:05d}.parquet"


def open_output(
    storage: Storage, config: dict[str, Any], *, overwrite: bool, marker: str = MANIFEST_FILE
) -> OutputState:
    """Claim the folder for a run of `config`, or say that it holds the finished result already.

    A claimed folder is locked until `finish`, `release_output`, `close_output` or the end of the
    process.

    `marker` is the file that is written last: the manifest, or for what is no dataset another JSON
    file with the run's `config`.

    Raises:
        InputError: the folder holds something else, or cannot be written to.
        AlignError: another run is writing there.
    """
    try:
        if _look(storage, config, marker, overwrite=overwrite) is OutputState.FINISHED:
            return OutputState.FINISHED
        hold(storage, _LOCK_FILE)
        try:
            return _claim(storage, config, marker, overwrite=overwrite)
        except BaseException:
            let_go(storage)
            raise
    except OSError as error:  # a file in its place, a read-only disk
        raise InputError(
            f"{storage.location} cannot be written to: {error}; name another folder with --output."
        ) from error


def close_output(storage: Storage) -> None:
    """Unlock the folder and leave it as it is, for another run to go on with."""
    let_go(storage)


def release_output(storage: Storage) -> None:
    """Give up a claim on a folder in which nothing has been finished, so that another configuration
    may have it.
    """
    if storage.names() == [RUN_FOLDER]:
        storage.delete(RUN_FOLDER)
    let_go(storage)


def _look(storage: Storage, config: dict[str, Any], marker: str, *, overwrite: bool) -> OutputState:
    """What is in the folder, which is only read."""
    names = storage.names()
    if names:
        _refuse_foreign(storage, names, marker)
    if overwrite:
        return OutputState.FRESH
    if marker in names:
        there, what = _finished_config(storage, marker)
        _refuse_difference(storage, there, config, what)
        return OutputState.FINISHED
    if RUN_FOLDER in names and storage.exists(_CONFIG_FILE):
        there = storage.read_json(_CONFIG_FILE)
        _refuse_difference(storage, there, config, "holds an unfinished run")
        return OutputState.BEGUN
    return OutputState.FRESH


def _claim(
    storage: Storage, config: dict[str, Any], marker: str, *, overwrite: bool
) -> OutputState:
    """Look again, now that nobody else writes, and leave our mark."""
    if overwrite:
        _empty(storage)
    state = _look(storage, config, marker, overwrite=False)
    if state is OutputState.FRESH:
        storage.write_json(_CONFIG_FILE, config)
    elif state is OutputState.BEGUN:
        _sweep(storage)
    else:  # another run finished it just now
        storage.delete(RUN_FOLDER)
        let_go(storage)
    return state


def _empty(storage: Storage) -> None:
    for name in storage.names():
        if name != RUN_FOLDER:
            storage.delete(name)
    run = storage.child(RUN_FOLDER)
    for name in run.names():
        if f"{RUN_FOLDER}/{name}" != _LOCK_FILE:
            run.delete(name)


def _sweep(storage: Storage) -> None:
    """Delete what killed writers had under temporary names."""
    if storage.is_remote:  # where what is half written has no name
        return
    root = storage.path()
    for info in storage.infos(recursive=True):
        if info.base_name.startswith(UNFINISHED) or info.base_name.endswith(_OLD_TEMPORARY):
            storage.delete(os.path.relpath(info.path, root))


def _finished_config(storage: Storage, marker: str) -> tuple[dict[str, Any], str]:
    """The configuration of what is finished in `storage`, and what to call it."""
    if marker == MANIFEST_FILE:
        return read_manifest(storage).config, "holds a dataset"
    found = storage.read_json(marker)
    there = found.get("config") if isinstance(found, dict) else None
    return there if isinstance(there, dict) else {}, f"holds {marker}"


def _refuse_foreign(storage: Storage, names: list[str], marker: str) -> None:
    if marker not in names and RUN_FOLDER not in names:
        what = "dataset" if marker == MANIFEST_FILE else marker
        raise InputError(
            f"{storage.location} is not empty and holds no {what} ({names[0]} lies there); "
            "name an empty or new folder with --output."
        )


def _refuse_difference(
    storage: Storage, there: dict[str, Any], ours: dict[str, Any], what: str
) -> None:
    for name, theirs, wanted in _differences(there, ours):
        if name.split(".")[0] != "execution":
            raise InputError(
                f"{storage.location} {what} with another configuration: {name} is {theirs!r} there "
                f"and {wanted!r} here; name another --output, or give --overwrite to replace it."
            )


def _differences(
    there: dict[str, Any], ours: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Names (`input.digest`) and both values of what differs."""
    for key in sorted(there.keys() | ours.keys()):
        theirs, wanted = there.get(key), ours.get(key)
        if isinstance(theirs, dict) and isinstance(wanted, dict):
            yield from _differences(theirs, wanted, f"{prefix}{key}.")
        elif theirs != wanted:
            yield f"{prefix}{key}", theirs, wanted


@dataclass(frozen=True, slots=True)
class WrittenRejects:
    """The rejects of one unit: their file, if there are any, and how many for each reason."""

    info: ShardInfo | None
    reasons: dict[str, int]


def write_rejects(storage: Storage, name: str, rejects: list[Reject]) -> WrittenRejects:
    """Write `rejects/<name>`; nothing is written when there are none."""
    if not rejects:
        return WrittenRejects(None, {})
    with writing_shard(storage, f"{REJECTS_FOLDER}/{name}", REJECT_SCHEMA) as (writer, result):
        writer.write(rejects_table(rejects))
    return WrittenRejects(result.info, dict(Counter(r.reason.value for r in rejects)))


def add_reasons(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counts by reason of several parts, the most frequent first."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def read_rejects(dataset: Dataset, limit: int) -> list[dict[str, str]]:
    """The first `limit` rejects of `dataset`, as rows of REJECT_SCHEMA."""
    rows: list[dict[str, str]] = []
    for shard in dataset.manifest.reject_shards:
        if len(rows) >= limit:
            break
        with dataset.storage.open(shard.file) as stream:
            table: pa.Table = pq.read_table(stream)
        rows += table.slice(0, limit - len(rows)).to_pylist()
    return rows


def finish(storage: Storage, manifest: Manifest) -> Dataset:
    """Write the manifest, which makes the folder a dataset, and remove the run's own notes."""
    _sweep(storage)
    write_manifest(storage, manifest)
    storage.delete(RUN_FOLDER)
    let_go(storage)
    return Dataset(storage.location)


class Provenance(TypedDict):
    """What wrote a manifest, and when."""

    package: str
    created: str


def provenance() -> Provenance:
    """`package` and `created` of a manifest written now."""
    return {
        "package": f"aligncurate {version('aligncurate')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
