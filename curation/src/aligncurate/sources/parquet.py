"""Parquet files with images or image paths: a file, a folder, a glob, or an AlignStack dataset."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from aligncurate.sources.columns import (
    EXPORT_MARK,
    Columns,
    as_conversations,
    as_images,
    as_own,
    find_columns,
    raw_text,
    require_same,
)
from aligncurate.sources.files import resolve_image_root
from aligncurate.sources.listing import (
    FoundFile,
    dataset_name,
    is_folder,
    listing_digest,
    names_below,
    static_folder,
)
from aligncurate.sources.metadata import as_text, caption_problem, is_valid_text
from aligncurate.sources.source import (
    RawBatch,
    Unit,
    cut_into_units,
    ids_of,
    marked_duplicates,
    parquet_rows,
    reading_parquet,
)
from alignshared import ContractError, Dataset, InputError, Reason, Reject, Storage
from alignshared.manifest import MANIFEST_FILE, RUN_FOLDER
from alignshared.schema import CONVERSATIONS_TYPE, IMAGE_TYPE, SOURCE_COLUMNS
from alignshared.stores.filesystems import is_remote, normal_location

_SUFFIX = ".parquet"


class ParquetSource:
    """Parquet at `location`: a file, a folder (recursive), a glob, or an AlignStack dataset.

    Columns: `image` as struct<bytes, path>, bytes or path (or `image_path`, `path`); `caption` (or
    `text`); optionally `id`. All others pass through. An id is a duplicate if an earlier row has
    it.

    Raises:
        InputError: there is nothing at `location`, or a column is missing or taken.
    """

    def __init__(
        self, location: str, files: list[FoundFile], image_root: str | None = None, name: str = ""
    ) -> None:
        self.location = normal_location(location)
        self.dataset_digest, listed = _files_at(location, files)
        self._listing_digest = listing_digest(listed)
        self.files = [file.location for file in listed]
        self.name = name or dataset_name(location, _SUFFIX)
        self.image_root = resolve_image_root(image_root, static_folder(location))
        self._derived = {
            file: f"{stem}-"
            for file, stem in zip(self.files, names_below(listed, _SUFFIX), strict=True)
        }
        with reading_parquet(self.files[0]) as parquet:
            schema: pa.Schema = parquet.schema_arrow
            ours = self.dataset_digest is not None or EXPORT_MARK in (schema.metadata or {})
            self.columns: Columns = find_columns(schema, self.files[0], is_dataset=ours)

    def identity(self) -> dict[str, Any]:
        """Location, image folder, and a digest of a manifest or of file names, sizes and times."""
        return {
            "kind": "parquet",
            "location": self.location,
            "digest": self.dataset_digest or self._listing_digest,
            "image_root": self.image_root,
        }

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Return units of consecutive rows; reads the file footers and the id column.

        Raises:
            InputError: a file is damaged, or not of the same kind as the first.
        """
        sizes = [(file, self._row_count(file)) for file in self.files]
        units = cut_into_units(sizes, shard_rows)
        if self.columns.id is None:
            return units
        return marked_duplicates(units, sizes, self.columns.id)

    def own_columns(self) -> pa.Schema:
        """Columns of the files that are not part of a pair."""
        return self.columns.own

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RawBatch]:
        """Read `unit`; rows without usable text, id or image reference become rejects."""
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
        has_bytes: list[bool] = images.field("bytes").is_valid().to_pylist()
        keep: list[int] = []
        rejects: list[Reject] = []
        for row, (id_, path, caption) in enumerate(zip(ids, paths, captions, strict=True)):
            problem = caption_problem(caption)
            if not is_valid_text(id_ + (path or "")):
                problem = Reason.INVALID_UTF8, "the id or the path is not valid UTF-8"
            elif first + row in duplicates:
                problem = Reason.DUPLICATE_ID, f"the id {id_!r} occurs in an earlier row"
            elif not path and not has_bytes[row]:
                problem = Reason.NO_IMAGE, "there is neither an image nor a path to one"
            if problem is None:
                keep.append(row)
                continue
            shown = path if path is not None and is_valid_text(path) else None
            rejects.append(Reject(id_ if is_valid_text(id_) else derived[row], shown, *problem))
        rows = pa.array(keep, pa.int64())
        table = self._table(batch.take(rows), [ids[r] for r in keep], [captions[r] for r in keep])
        return RawBatch(table, rejects)

    def _ids(self, unit: Unit, first: int, batch: pa.RecordBatch) -> tuple[list[str], list[str]]:
        """Return ids derived from file and row number, and the ids to use."""
        prefix = self._derived[unit.file]
        derived = [f"{prefix}{first + row:09d}" for row in range(batch.num_rows)]
        if self.columns.id is None:
            return derived, derived
        own = ids_of(batch.column(self.columns.id))
        return derived, [g or d for g, d in zip(own, derived, strict=True)]

    def _table(self, batch: pa.RecordBatch, ids: list[str], captions: list[str]) -> pa.Table:
        """Convert usable rows of `batch` to SOURCE_COLUMNS plus own columns."""
        images = as_images(batch.column(self.columns.image))
        image = pa.StructArray.from_arrays(
            [images.field("bytes"), images.field("path").cast(pa.string())], fields=list(IMAGE_TYPE)
        )
        conversations = (
            as_conversations(batch.column(self.columns.conversations))
            if self.columns.conversations
            else pa.nulls(batch.num_rows, CONVERSATIONS_TYPE)
        )
        source = [pa.array(ids, pa.string()), image, pa.array(captions, pa.string()), conversations]
        own = [as_own(batch.column(field.name), field.type) for field in self.columns.own]
        return pa.table(source + own, names=[*SOURCE_COLUMNS, *self.columns.own.names])


def _files_at(location: str, files: list[FoundFile]) -> tuple[str | None, list[FoundFile]]:
    """Return the manifest digest if `location` is an AlignStack dataset, and its Parquet files."""
    if is_folder(location) and Storage(location).exists(MANIFEST_FILE):
        dataset = Dataset(location)
        shards = dataset.manifest.shards
        if not dataset.manifest.rows:
            raise InputError(f"{location} is empty: its manifest lists no pairs.")
        listed = [FoundFile(f"{dataset.location}/{s.file}", s.bytes, 0) for s in shards]
        return dataset.digest, listed
    only_one = len(files) == 1 and files[0].location == normal_location(location)
    files = files if only_one else [file for file in files if file.location.endswith(_SUFFIX)]
    if not files:
        raise InputError(
            f"there is no Parquet file at {location}; name a file, a folder or a glob."
        )
    if not only_one:
        _refuse_parts_of_runs(location, files)
    return None, files


def _refuse_parts_of_runs(location: str, files: list[FoundFile]) -> None:
    """Refuse a folder above AlignStack datasets: it would mix pairs with rejects and stages."""
    first = files[0].location
    root = len(first.partition("://")[0]) + len("://") if is_remote(first) else 0
    parents = {file.location.rpartition("/")[0] for file in files}
    parents |= {folder.rpartition("/")[0] for folder in parents}
    for folder in sorted(folder for folder in parents if len(folder) > root):
        storage = Storage(folder)
        if storage.exists(RUN_FOLDER):
            raise InputError(
                f"{folder}, which {location} takes in, holds an unfinished run; run the command "
                "that began it again to finish it."
            )
        with suppress(ContractError):  # not a manifest of ours
            if storage.exists(MANIFEST_FILE):
                Dataset(folder)
                raise InputError(
                    f"{location} takes in files of the dataset {folder}; name that folder as "
                    "--input."
                )
