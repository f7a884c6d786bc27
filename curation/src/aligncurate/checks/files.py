"""Files of a dataset: listed ones exist and are intact, and there are no others."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from aligncurate.checks.problems import Kind, Problem, written_wrongly
from alignshared import Dataset, InputError, ShardInfo, Storage
from alignshared.errors import one_line
from alignshared.manifest import LEVELS_FILE, MANIFEST_FILE, RUN_FOLDER, STATISTICS_FILE

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""Errors raised on damaged Parquet files, from footer to last page."""

_COPY_AGAIN = "copy it again or write the dataset again"


@contextmanager
def open_parquet(storage: Storage, file: str) -> Iterator[pq.ParquetFile]:
    """The Parquet file `file`, open for the length of the block.

    Raises:
        OSError, ValueError, ArrowException: the file is unreadable, now or later in the block.
    """
    with storage.open(file) as source, pq.ParquetFile(source) as parquet:
        yield parquet


def check_file(storage: Storage, shard: ShardInfo, kind: Kind = Kind.FILES) -> Problem | None:
    """Problem with the bytes of `shard`; None if they match the manifest."""
    try:
        info = storage.filesystem.get_file_info(storage.path(shard.file))
        if info.type != fs.FileType.File:
            fault = "is missing, though the manifest lists it"
        elif info.size != shard.bytes:
            fault = f"has {info.size:,} bytes and the manifest says {shard.bytes:,}"
        elif _sha256(storage, shard.file) != shard.sha256:
            fault = "is not the file that was written: its SHA-256 is another one"
        else:
            return None
    except (OSError, InputError) as error:
        return unreadable(shard.file, error, kind)
    return Problem(kind, f"{shard.file} {fault}; {_COPY_AGAIN}.")


def unreadable(file: str, error: Exception, kind: Kind = Kind.FILES) -> Problem:
    """Problem for a file that exists but cannot be read."""
    return Problem(kind, f"{file} cannot be read: {one_line(error)[:300]}; {_COPY_AGAIN}.")


def _sha256(storage: Storage, file: str) -> str:
    with storage.open(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def distinct_shards(shards: list[ShardInfo]) -> tuple[list[ShardInfo], list[Problem]]:
    """Return `shards` without repeated files, and a problem for each repeat."""
    by_file: dict[str, ShardInfo] = {}
    problems: list[Problem] = []
    for shard in shards:
        if shard.file in by_file:
            problems.append(written_wrongly(Kind.FILES, f"the manifest lists {shard.file} twice"))
        by_file.setdefault(shard.file, shard)
    return list(by_file.values()), problems


def check_strays(dataset: Dataset) -> list[Problem]:
    """Problems for files in the folder that the manifest does not list."""
    manifest, storage = dataset.manifest, dataset.storage
    duplicates = manifest.duplicates.shards if manifest.duplicates else []
    listed = (*manifest.shards, *manifest.reject_shards, *duplicates)
    expected = {shard.file for shard in listed} | {MANIFEST_FILE, STATISTICS_FILE}
    expected |= {LEVELS_FILE} if manifest.edges is not None else set()
    root = storage.path()
    try:
        infos = storage.filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        return [unreadable(storage.location, error)]
    files = {
        info.path.removeprefix(root).lstrip("/") for info in infos if info.type == fs.FileType.File
    }
    return [
        Problem(
            Kind.FILES,
            f"{file} was left by the run that wrote the dataset; delete it."
            if file.startswith(f"{RUN_FOLDER}/")
            else f"{file} lies in the folder and the manifest does not list it; move it away.",
        )
        for file in sorted(files - expected)
    ]
