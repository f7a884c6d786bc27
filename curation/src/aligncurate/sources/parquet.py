"""Parquet files with pictures inside or paths to them: a file, a folder, a glob, or one of our
datasets.
"""

import hashlib
import os
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa

from aligncurate.output import RUN_FOLDER
from aligncurate.sources.captions import as_text, caption_problem, is_valid_text
from aligncurate.sources.columns import (
    Columns,
    as_conversations,
    as_images,
    as_own,
    find_columns,
    raw_text,
    require_same,
)
from aligncurate.sources.duplicates import repeated_rows
from aligncurate.sources.files import picture_root
from aligncurate.sources.source import (
    RawBatch,
    Unit,
    cut_into_units,
    parquet_rows,
    reading_parquet,
)
from alignshared import ContractError, Dataset, InputError, Reason, Reject, Storage
from alignshared.manifest import MANIFEST_FILE
from alignshared.schema import CONVERSATIONS_TYPE, IMAGE_TYPE, SOURCE_COLUMNS


class ParquetSource:
    """Parquet at `location`: a file, a folder (searched to the bottom), a glob, or a dataset of
    ours.

    Columns: `image` as struct<bytes, path>, as bytes or as a path (or `image_path`, `path`);
    `caption` (or `text`); `id` if there is one. All others pass through. An id counts as a
    duplicate if an earlier row has it.

    Raises:
        InputError: there is nothing at `location`, or a column is missing or taken.
    """

    def __init__(self, location: str, image_root: str | None = None, name: str = "") -> None:
        self.location = os.path.abspath(location)
        self.dataset_digest, self.files = _files_at(location)
        self.name = name or Path(location.split("*")[0]).name.removesuffix(".parquet") or "parquet"
        self.image_root = str((picture_root(image_root) or _folder_of(location)).resolve())
        self._derived = {
            file: f"{stem}-" for file, stem in zip(self.files, _stems(self.files), strict=True)
        }
        with reading_parquet(self.files[0]) as parquet:
            self.columns: Columns = find_columns(
                parquet.schema_arrow, self.files[0], is_dataset=self.dataset_digest is not None
            )

    def identity(self) -> dict[str, Any]:
        """The location, a digest of the files' names, sizes and times, or of a manifest, and the
        folder of the pictures.
        """
        return {
            "kind": "parquet",
            "location": self.location,
            "digest": self._digest,
            "image_root": self.image_root,
        }

    @cached_property
    def _digest(self) -> str:
        if self.dataset_digest is not None:
            return self.dataset_digest
        stats = [(Path(file).name, Path(file).stat()) for file in self.files]
        listing = [f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Units of consecutive rows; reads the files' footers and the id column.

        Raises:
            InputError: a file is damaged, or not of the same kind as the first.
        """
        sizes = [(file, self._row_count(file)) for file in self.files]
        units = cut_into_units(sizes, shard_rows)
        if self.columns.id is None:
            return units
        return _with_duplicates(units, sizes, _Ids(self.files, self.columns.id))

    def own_columns(self) -> pa.Schema:
        """Columns of the files that play no part in a pair."""
        return self.columns.own

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RawBatch]:
        """Rows of `unit`; a row without usable text, id or picture reference is a reject."""
        duplicates = frozenset(unit.duplicates)
        for first, batch in parquet_rows(unit, self.columns.names(), batch_rows):
            yield self._checked(unit, first, batch, duplicates)

    def _row_count(self, file: str) -> int:
        with reading_parquet(file) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        require_same(self.columns, schema, file)
        return rows

    def _checked(
        self, unit: Unit, first: int, batch: pa.RecordBatch, duplicates: frozenset[int]
    ) -> RawBatch:
        parts = self.columns
        derived, ids = self._ids(unit, first, batch)
        images = as_images(batch.column(parts.image))
        captions = [as_text(value) for value in raw_text(batch.column(parts.caption))]
        paths = [as_text(value) for value in raw_text(images.field("path"))]
        has_bytes = images.field("bytes").is_valid().to_pylist()
        keep: list[int] = []
        rejects: list[Reject] = []
        for row, (id_, path, caption) in enumerate(zip(ids, paths, captions, strict=True)):
            problem = caption_problem(caption)
            if not is_valid_text(id_ + (path or "")):
                problem = Reason.INVALID_UTF8, "the id or the path is not valid UTF-8"
            elif first + row in duplicates:
                problem = Reason.DUPLICATE_ID, f"the id {id_!r} occurs in an earlier row"
            elif not path and not has_bytes[row]:
                problem = Reason.NO_IMAGE, "there is neither a picture nor a path to one"
            if problem is None:
                keep.append(row)
                continue
            shown = path if path is not None and is_valid_text(path) else None
            rejects.append(Reject(id_ if is_valid_text(id_) else derived[row], shown, *problem))
        rows = pa.array(keep, pa.int64())
        table = self._table(batch.take(rows), [ids[r] for r in keep], [captions[r] for r in keep])
        return RawBatch(table, rejects)

    def _ids(self, unit: Unit, first: int, batch: pa.RecordBatch) -> tuple[list[str], list[str]]:
        """Ids made from the file and the row number, and the ids to use."""
        prefix = self._derived[unit.file]
        derived = [f"{prefix}{first + row:09d}" for row in range(batch.num_rows)]
        if self.columns.id is None:
            return derived, derived
        given = _ids_of(batch.column(self.columns.id))
        return derived, [g or d for g, d in zip(given, derived, strict=True)]

    def _table(self, batch: pa.RecordBatch, ids: list[str], captions: list[str]) -> pa.Table:
        """The rows of `batch`, all of them usable, as SOURCE_COLUMNS and the own ones."""
        images = as_images(batch.column(self.columns.image))
        image = pa.StructArray.from_arrays(
            [images.field("bytes"), images.field("path").cast(pa.string())],
            fields=list(IMAGE_TYPE),
        )
        conversations = (
            as_conversations(batch.column(self.columns.conversations))
            if self.columns.conversations
            else pa.nulls(batch.num_rows, CONVERSATIONS_TYPE)
        )
        source = [pa.array(ids, pa.string()), image, pa.array(captions, pa.string()), conversations]
        own = [as_own(batch.column(field.name), field.type) for field in self.columns.own]
        return pa.table(source + own, names=[*SOURCE_COLUMNS, *self.columns.own.names])


class _Ids:
    """The id column of all files, chunk by chunk, as often as it is asked for."""

    def __init__(self, files: list[str], column: str) -> None:
        self._files = files
        self._column = column

    def __iter__(self) -> Iterator[list[str | None]]:
        for file in self._files:
            with reading_parquet(file) as parquet:
                for batch in parquet.iter_batches(columns=[self._column]):
                    yield _ids_of(batch.column(0))


def _ids_of(column: pa.Array) -> list[str | None]:
    """Ids as text; None where there is none."""
    texts = [as_text(value) for value in raw_text(column)]
    return [None if text is None or text == "" else str(text) for text in texts]


def _with_duplicates(units: list[Unit], sizes: list[tuple[str, int]], ids: _Ids) -> list[Unit]:
    begin_of_file: dict[str, int] = {}
    total = 0
    for file, rows in sizes:
        begin_of_file[file] = total
        total += rows
    repeated = list(repeated_rows(ids))
    if not repeated:
        return units
    marked: list[Unit] = []
    for unit in units:
        begin = begin_of_file[unit.file]
        low, high = begin + unit.first, begin + unit.first + unit.rows
        inside = repeated[bisect_left(repeated, low) : bisect_left(repeated, high)]
        rows = tuple(row - begin for row in inside)
        marked.append(Unit(unit.index, unit.file, unit.first, unit.rows, rows))
    return marked


def _files_at(location: str) -> tuple[str | None, list[str]]:
    """The manifest's digest if `location` is a dataset of ours, and the Parquet files there."""
    path = Path(location)
    if path.is_file():
        return None, [str(path.resolve())]
    if path.is_dir() and Storage(location).exists(MANIFEST_FILE):
        dataset = Dataset(location)
        shards = [f"{dataset.location}/{shard.file}" for shard in dataset.manifest.shards]
        if not dataset.manifest.rows:
            raise InputError(f"{location} is empty: its manifest lists no pairs.")
        return dataset.digest, shards
    found = path.rglob("*.parquet") if path.is_dir() else map(Path, glob(location, recursive=True))
    files = sorted(str(file.resolve()) for file in found if file.suffix == ".parquet")
    if not files:
        raise InputError(
            f"there is no Parquet file at {location}; name a file, a folder or a glob."
        )
    _refuse_parts_of_runs(location, files)
    return None, files


def _refuse_parts_of_runs(location: str, files: list[str]) -> None:
    """A folder above our datasets would mix pairs with rejects, and one stage with another."""
    for folder in sorted({parent for file in files for parent in Path(file).parents[:2]}):
        if (folder / RUN_FOLDER).is_dir():
            raise InputError(
                f"{folder}, which {location} takes in, holds an unfinished run; run the command "
                "that began it again to finish it."
            )
        if _is_dataset(folder):
            raise InputError(
                f"{location} takes in files of the dataset {folder}; name that folder as --input."
            )


def _is_dataset(folder: Path) -> bool:
    if not (folder / MANIFEST_FILE).is_file():
        return False
    try:
        Dataset(folder)
    except ContractError:
        return False
    return True


def _folder_of(location: str) -> Path:
    plain = Path(location.split("*")[0])
    return plain if plain.is_dir() else plain.parent


def _stems(files: list[str]) -> list[str]:
    """A name for each file, told apart by their folders where the names alone are the same."""
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.relpath(file, root).removesuffix(".parquet") for file in files]
