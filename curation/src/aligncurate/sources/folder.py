"""A folder of images with captions in `.txt` files of the same name."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from aligncurate.sources.files import IMAGE_SUFFIXES, read_file, resolve_image_root
from aligncurate.sources.listing import FoundFile, dataset_name, listing_digest
from aligncurate.sources.metadata import (
    MAX_TEXT_BYTES,
    as_text,
    caption_problem,
    is_valid_text,
    writable,
)
from aligncurate.sources.source import (
    RawBatch,
    Unit,
    index_units,
    parquet_rows,
    reject_of,
    sorted_batch,
)
from aligncurate.threads import map_ordered
from alignshared import Reason, Reject, Storage
from alignshared.images import ImageError
from alignshared.stores.filesystems import is_remote, normal_location

_INDEX_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "path", "caption", "reason", "detail")]
)
_REMOTE_THREADS = 16


class FolderSource:
    """Images in the folder `location`, searched recursively; `a/b.jpg` has the id `a/b` and its
    caption in `a/b.txt`. `files` are all that are there.
    """

    def __init__(self, location: str, files: list[FoundFile]) -> None:
        self.location = normal_location(location)
        self.image_root = resolve_image_root(location, location)
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
        return index_units(work, _INDEX_SCHEMA, _index_rows(self._names), shard_rows)

    def own_columns(self) -> pa.Schema:
        """None."""
        return pa.schema([])

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RawBatch]:
        """Read the images of `unit`, by path, with their captions."""
        threads = _REMOTE_THREADS if is_remote(self.location) else 1
        for _, batch in parquet_rows(unit, _INDEX_SCHEMA.names, batch_rows):
            found = list(map_ordered(self._pair, batch.to_pylist(), threads))
            yield sorted_batch(found, self.own_columns())

    def _pair(self, row: dict[str, Any]) -> dict[str, Any] | Reject:
        """Return the pair of an index row, with its caption, or the reject that it is."""
        if row["reason"] is not None:
            return reject_of(row)
        try:
            text = as_text(read_file(self.image_root, row["caption"], MAX_TEXT_BYTES))
        except ImageError as error:
            return Reject(row["id"], row["path"], error.reason, f"its caption {error.detail}")
        if (problem := caption_problem(text)) is not None:
            return Reject(row["id"], row["path"], *problem)
        image = {"bytes": None, "path": row["path"]}
        return {"id": row["id"], "image": image, "caption": text.strip()}


def is_image(name: str) -> bool:
    """Whether the file name has an image suffix."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _index_rows(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each image and for each caption without one."""
    for stem, group in groupby(sorted(names, key=lambda name: (_stem(name), name)), key=_stem):
        members = list(group)
        images = [name for name in members if is_image(name)]
        caption = f"{stem}.txt" if f"{stem}.txt" in members else None
        for path in images:
            if not is_valid_text(path):
                detail = "the file's name is not valid UTF-8"
                yield _rejected(stem, None, Reason.INVALID_UTF8, detail)
            elif path != images[0]:
                detail = f"the id {stem!r} is that of another image, with another suffix"
                yield _rejected(stem, path, Reason.DUPLICATE_ID, detail)
            elif caption is None:
                yield _rejected(stem, path, Reason.NO_CAPTION, f"there is no {stem}.txt")
            else:
                yield {"id": stem, "path": path, "caption": caption}
        if caption is not None and not images:
            detail = f"there is no image beside {caption}"
            yield _rejected(stem, None, Reason.NO_IMAGE, detail)


def _rejected(stem: str, path: str | None, reason: Reason, detail: str) -> dict[str, Any]:
    row = {"id": writable(stem), "path": path}
    return row | {"reason": reason.value, "detail": writable(detail)}


def _stem(name: str) -> str:
    pure = PurePosixPath(name)
    return str(pure.with_suffix("")) if pure.suffix else name
