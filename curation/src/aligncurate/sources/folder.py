"""A folder of images with captions in `.txt` files of the same name."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from aligncurate.sources.files import IMAGE_SUFFIXES, read_text, resolve_image_root
from aligncurate.sources.index import index_rows, write_index
from aligncurate.sources.listing import FoundFile, dataset_name, find_files, listing_digest
from aligncurate.sources.metadata import (
    MAX_TEXT_BYTES,
    as_text,
    caption_problem,
    is_valid_text,
    writable,
)
from aligncurate.sources.source import RawBatch, Unit, cut_into_units, parquet_rows
from aligncurate.threads import map_ordered
from alignshared import InputError, Reason, Reject, Storage
from alignshared.images import ImageError
from alignshared.schema import CONVERSATIONS_TYPE, IMAGE_TYPE, SOURCE_COLUMNS
from alignshared.stores.filesystems import is_remote, normal_location

_INDEX_FILE = "index.parquet"
_INDEX_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "path", "caption", "reason", "detail")]
)
_REMOTE_THREADS = 16


class FolderSource:
    """Images in the folder `location`, searched recursively; `a/b.jpg` has the id `a/b` and its
    caption in `a/b.txt`.

    Raises:
        InputError: the folder is missing or has no images.
    """

    def __init__(self, location: str, files: list[FoundFile] | None = None) -> None:
        self.location = normal_location(location)
        self.image_root = resolve_image_root(location, location)
        files = find_files(location) if files is None else files
        if not any(map(is_image, files)):
            raise InputError(f"there is no image in {location}; name the folder of images.")
        self.name = dataset_name(location, ".folder")
        self._digest = listing_digest(files)
        start = len(self.location.rstrip("/")) + 1
        self._names = [file.location[start:] for file in files]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_names": []}  # workers read the index

    def identity(self) -> dict[str, Any]:
        """The folder, and a digest of its files' names, sizes and times."""
        return {"kind": "folder", "location": self.location, "digest": self._digest}

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Index images and captions in `work`, unless an earlier run did."""
        if not work.exists(_INDEX_FILE):
            write_index(work, _INDEX_FILE, _INDEX_SCHEMA, _index_rows(self._names))
        location = f"{work.location}/{_INDEX_FILE}"
        return cut_into_units([(location, index_rows(work, _INDEX_FILE))], shard_rows)

    def own_columns(self) -> pa.Schema:
        """None."""
        return pa.schema([])

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RawBatch]:
        """Read the images of `unit`, by path, with their captions."""
        threads = _REMOTE_THREADS if is_remote(self.location) else 1
        for _, batch in parquet_rows(unit, _INDEX_SCHEMA.names, batch_rows):
            rows = list(map_ordered(self._with_caption, batch.to_pylist(), threads))
            rejects = [
                Reject(row["id"], row["path"], Reason(row["reason"]), row["detail"])
                for row in rows
                if row["reason"] is not None
            ]
            yield RawBatch(_table([row for row in rows if row["reason"] is None]), rejects)

    def _with_caption(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return `row` with its caption, or with the reason for rejecting it."""
        if row["reason"] is not None:
            return row
        try:
            text = as_text(read_text(self.image_root, row["caption"], MAX_TEXT_BYTES))
        except ImageError as error:
            return row | {"reason": error.reason, "detail": f"its caption {error.detail}"}
        if (problem := caption_problem(text)) is not None:
            return row | {"reason": problem[0], "detail": problem[1]}
        return row | {"caption": text.strip()}


def is_image(file: FoundFile) -> bool:
    """Whether the file name has an image suffix."""
    return file.location.lower().endswith(IMAGE_SUFFIXES)


def _index_rows(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each image and for each caption without one."""
    for stem, group in groupby(sorted(names, key=_order), key=_stem):
        members = list(group)
        images = [name for name in members if name.lower().endswith(IMAGE_SUFFIXES)]
        caption = f"{stem}.txt" if f"{stem}.txt" in members else None
        for number, path in enumerate(images):
            yield _index_row(stem, path, caption, repeats=number > 0)
        if caption is not None and not images:
            yield _row(stem, None, Reason.NO_IMAGE, f"there is no image beside {caption}")


def _index_row(stem: str, path: str, caption: str | None, *, repeats: bool) -> dict[str, Any]:
    if not is_valid_text(path):
        return _row(stem, None, Reason.INVALID_UTF8, "the file's name is not valid UTF-8")
    if repeats:
        detail = f"the id {stem!r} is that of another image, with another suffix"
        return _row(stem, path, Reason.DUPLICATE_ID, detail)
    if caption is None:
        return _row(stem, path, Reason.NO_CAPTION, f"there is no {stem}.txt")
    return {"id": stem, "path": path, "caption": caption, "reason": None, "detail": None}


def _row(stem: str, path: str | None, reason: Reason, detail: str) -> dict[str, Any]:
    shown = {"id": writable(stem), "path": path, "caption": None}
    return shown | {"reason": reason.value, "detail": writable(detail)}


def _stem(name: str) -> str:
    pure = PurePosixPath(name)
    return str(pure.with_suffix("")) if pure.suffix else name


def _order(name: str) -> tuple[str, str]:
    return _stem(name), name


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = [
        pa.array([row["id"] for row in rows], pa.string()),
        pa.array([{"bytes": None, "path": row["path"]} for row in rows], IMAGE_TYPE),
        pa.array([row["caption"] for row in rows], pa.string()),
        pa.nulls(len(rows), CONVERSATIONS_TYPE),
    ]
    return pa.table(columns, names=list(SOURCE_COLUMNS))
