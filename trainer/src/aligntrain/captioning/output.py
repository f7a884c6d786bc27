"""Output folder of a captioning run: a dataset, written shard by shard and resumable.

Each finished shard leaves a record with the answers that it added, so that a resumed run asks for
no image again. A run writes `.run/config.json` before its first shard and removes `.run` once the
manifest is written. A running writer holds `.run/lock`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from alignshared import Dataset, InputError, Manifest, Parent, Reject, ShardInfo, Storage
from alignshared.manifest import (
    MANIFEST_FILE,
    REJECTS_FOLDER,
    RUN_FOLDER,
    read_manifest,
    write_manifest,
)
from alignshared.rejects import REJECT_SCHEMA, rejects_table
from alignshared.schema import CONTRACT, Count
from alignshared.shards import writing_shard
from alignshared.stores.lock import acquire, check_held, release

STAGE = "caption"

_CONFIG = f"{RUN_FOLDER}/config.json"
_LOCK = f"{RUN_FOLDER}/lock"
_RECORDS = f"{RUN_FOLDER}/captions"


@dataclass(frozen=True, slots=True, config=CONTRACT)
class ShardRecord:
    """A finished shard: its file, its file of rejects, if any, and their number by reason.

    `answers` are the texts of the images that no earlier shard has, by the digest of the image;
    `cut_off` of them reached the limit of tokens.
    """

    shard: ShardInfo
    reject_shard: ShardInfo | None
    rejects: dict[str, Count]
    answers: dict[str, str]
    cut_off: Count


_RECORD = TypeAdapter(ShardRecord)


def finished_dataset(storage: Storage, config: dict[str, Any]) -> Dataset | None:
    """Return the dataset in `storage` if a run of `config` has finished it, or None.

    Raises:
        InputError: the folder holds something else, or captions of another configuration.
    """
    names = storage.names()
    if MANIFEST_FILE in names:
        manifest = read_manifest(storage)
        if manifest.stage != STAGE:
            raise InputError(
                f"{storage.location} holds a dataset of the stage {manifest.stage}; give another "
                "--output."
            )
        _refuse_difference(storage, manifest.config, config)
        return Dataset(storage.location)
    if names and RUN_FOLDER not in names:
        raise InputError(
            f"{storage.location} is not empty and holds no captions ({names[0]} lies there); give "
            "a new folder as --output."
        )
    begun = storage.read_json(_CONFIG) if storage.exists(_CONFIG) else config
    if not begun.keys() >= config.keys():
        raise InputError(
            f"{storage.location} holds an unfinished run of another command; give another --output."
        )
    if storage.child(_RECORDS).names():  # without a finished shard nothing is lost
        _refuse_difference(storage, begun, config)
    return None


@contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Be the only writer of `storage` for the block; leave no `.run` without a finished shard.

    Raises:
        InputError: the folder cannot be written to.
        AlignError: another run is writing there.
    """
    try:
        acquire(storage, _LOCK)
    except OSError as error:
        raise InputError(
            f"{storage.location} cannot be written to: {error}; give another --output."
        ) from error
    try:
        yield
    finally:
        if not storage.child(_RECORDS).names():
            storage.delete(RUN_FOLDER)
        release(storage)


def begin(storage: Storage, config: dict[str, Any]) -> dict[int, ShardRecord]:
    """Record `config` in `storage`, locked; return the finished shards of an earlier run.

    Raises:
        InputError: that run had another configuration.
    """
    storage.sweep()
    folder = storage.child(_RECORDS)
    names = folder.names()
    if names:
        _refuse_difference(storage, storage.read_json(_CONFIG), config)
    storage.write_json(_CONFIG, config)
    return {
        int(name.removesuffix(".json")): _RECORD.validate_json(folder.read_bytes(name))
        for name in names
    }


def write_shard(
    storage: Storage,
    index: int,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    rejects: Sequence[Reject],
    *,
    answers: dict[str, str],
    cut_off: int,
) -> ShardRecord:
    """Write shard `index` of `tables`, its rejects, and last the record that marks it finished."""
    name = f"shard-{index:05d}.parquet"
    with writing_shard(storage, name, schema) as (writer, result):
        for table in tables:
            writer.write(table)
    reject_shard = None
    if rejects:
        file = f"{REJECTS_FOLDER}/{name}"
        with writing_shard(storage, file, REJECT_SCHEMA) as (writer, written):
            writer.write(rejects_table(list(rejects)))
        reject_shard = written.info
    reasons = Counter(reject.reason.value for reject in rejects)
    record = ShardRecord(result.info, reject_shard, dict(reasons), answers, cut_off)
    check_held(storage)
    storage.write_json(f"{_RECORDS}/{index:07d}.json", asdict(record))
    return record


def finish(
    storage: Storage,
    parent: Dataset,
    config: dict[str, Any],
    execution: dict[str, Any],
    records: Sequence[ShardRecord],
) -> Dataset:
    """Write the manifest of the captions for `parent`, which completes them, and remove `.run`."""
    reasons: Counter[str] = Counter()
    for record in records:
        reasons.update(record.rejects)
    storage.sweep()
    write_manifest(
        storage,
        Manifest(
            stage=STAGE,
            rows=sum(record.shard.rows for record in records),
            rejects=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            shards=[record.shard for record in records],
            reject_shards=[r.reject_shard for r in records if r.reject_shard is not None],
            config={**config, "execution": execution},
            parents=[Parent(parent.location, parent.digest)],
            package=f"aligntrain {version('aligntrain')}",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    storage.delete(RUN_FOLDER)
    return Dataset(storage.location)


def _refuse_difference(storage: Storage, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(
                f"{storage.location} holds captions of another {name.replace('_', ' ')} "
                f"({_shown(before.get(name))}, now {_shown(value)}); give another --output, or "
                "remove that folder."
            )


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
