"""Parquet files with pictures inside or paths to them: a file, a folder, a glob, or one of our
datasets.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa

from aligncurate.sources.captions import as_text, caption_problem, is_valid_text
from aligncurate.sources.duplicates import repeated_rows
from aligncurate.sources.source import RawBatch, Unit, cut_into_units, open_parquet, parquet_rows
from alignshared import Dataset, InputError, Reason, Reject, Storage
from alignshared.manifest import MANIFEST_FILE
from alignshared.schema import CONVERSATIONS_TYPE, IMAGE_TYPE, SOURCE_COLUMNS, STAGE_COLUMNS

_IMAGE_NAMES = ("image", "image_path", "path")
_CAPTION_NAMES = ("caption", "text", "TEXT")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of the files play which part; `own` are the others, which pass through."""

    id: str | None
    image: str
    caption: str
    conversations: str | None
    own: pa.Schema

    def names(self) -> list[str]:
        parts = [self.id, self.image, self.caption, self.conversations]
        return [name for name in parts if name is not None] + self.own.names


class ParquetSource:
    """Parquet at `location`: a file, a folder (searched to the bottom), a glob, or a dataset of
    ours.

    Columns: `image` as struct<bytes, path>, as bytes or as a path (or `image_path`, `path`);
    `caption` (or `text`); `id` if there is one. All others pass through.

    Raises:
        InputError: there is nothing at `location`, or a column is missing or taken.
    """

    def __init__(self, location: str, image_root: str | None = None, name: str = "") -> None:
        self.location = location
        self.dataset_digest, self.files = _files_at(location)
        self.name = name or Path(location.split("*")[0]).name.removesuffix(".parquet") or "parquet"
        self.columns = _find_columns(self.files[0], is_dataset=self.dataset_digest is not None)
        self.image_root = image_root or _folder_of(location)

    def identity(self) -> dict[str, Any]:
        """The location, and a digest of the files' names, sizes and times, or of a manifest."""
        return {"kind": "parquet", "location": self.location, "digest": self._digest}

    @cached_property
    def _digest(self) -> str:
        if self.dataset_digest is not None:
            return self.dataset_digest
        stats = [(Path(file).name, Path(file).stat()) for file in self.files]
        listing = [f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Units of consecutive rows; reads the files' footers and the id column."""
        sizes = [(file, _row_count(file)) for file in self.files]
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

    def _checked(
        self, unit: Unit, first: int, batch: pa.RecordBatch, duplicates: frozenset[int]
    ) -> RawBatch:
        parts = self.columns
        ids = self._ids(unit, first, batch)
        images = _as_images(batch.column(parts.image))
        captions = [as_text(value) for value in _raw_text(batch.column(parts.caption))]
        paths = [as_text(value) for value in _raw_text(images.field("path"))]
        has_bytes = images.field("bytes").is_valid().to_pylist()
        keep: list[int] = []
        rejects: list[Reject] = []
        for row, (id_, path, caption) in enumerate(zip(ids, paths, captions, strict=True)):
            problem = caption_problem(caption)
            if first + row in duplicates:
                problem = Reason.DUPLICATE_ID, f"the id {id_!r} occurs in an earlier row"
            elif path is None and not has_bytes[row]:
                problem = Reason.NO_IMAGE, "there is neither a picture nor a path to one"
            elif not is_valid_text(id_ + (path or "")):
                problem = Reason.INVALID_UTF8, "the id or the path is not valid UTF-8"
            if problem is None:
                keep.append(row)
            else:
                rejects.append(Reject(id_, path, *problem))
        table = self._table(batch, ids, paths, captions).take(keep)
        return RawBatch(table, rejects)

    def _ids(self, unit: Unit, first: int, batch: pa.RecordBatch) -> list[str]:
        stem = Path(unit.file).stem
        derived = [f"{stem}-{first + row:09d}" for row in range(batch.num_rows)]
        if self.columns.id is None:
            return derived
        given = [as_text(v) for v in _raw_text(batch.column(self.columns.id))]
        return [str(g) if g is not None else d for g, d in zip(given, derived, strict=True)]

    def _table(
        self, batch: pa.RecordBatch, ids: list[str], paths: list[Any], captions: list[Any]
    ) -> pa.Table:
        texts = [c if isinstance(c, str) and is_valid_text(c) else None for c in captions]
        safe_paths = [p if p is not None and is_valid_text(p) else None for p in paths]
        image = pa.StructArray.from_arrays(
            [
                _as_images(batch.column(self.columns.image)).field("bytes"),
                pa.array(safe_paths, pa.string()),
            ],
            fields=list(IMAGE_TYPE),
        )
        conversations = (
            batch.column(self.columns.conversations).cast(CONVERSATIONS_TYPE)
            if self.columns.conversations
            else pa.nulls(batch.num_rows, CONVERSATIONS_TYPE)
        )
        source = [
            pa.array([i if is_valid_text(i) else None for i in ids], pa.string()),
            image,
            pa.array(texts, pa.string()),
            conversations,
        ]
        own = [batch.column(f.name).cast(f.type) for f in self.columns.own]
        return pa.table(source + own, names=[*SOURCE_COLUMNS, *self.columns.own.names])


class _Ids:
    """The id column of all files, chunk by chunk, as often as it is asked for."""

    def __init__(self, files: list[str], column: str) -> None:
        self._files = files
        self._column = column

    def __iter__(self) -> Iterator[list[Any]]:
        for file in self._files:
            with open_parquet(file) as parquet:
                for batch in parquet.iter_batches(columns=[self._column]):
                    yield [as_text(value) for value in _raw_text(batch.column(0))]


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
        rows = tuple(row - begin for row in repeated if low <= row < high)
        marked.append(Unit(unit.index, unit.file, unit.first, unit.rows, rows))
    return marked


def _files_at(location: str) -> tuple[str | None, list[str]]:
    """The manifest's digest if `location` is a dataset of ours, and the Parquet files there."""
    if Storage(location).exists(MANIFEST_FILE):
        dataset = Dataset(location)
        shards = [f"{dataset.location}/{shard.file}" for shard in dataset.manifest.shards]
        if not shards:
            raise InputError(f"{location} is empty: its manifest lists no shards.")
        return dataset.digest, shards
    path = Path(location)
    if path.is_file():
        return None, [str(path.resolve())]
    found = path.rglob("*.parquet") if path.is_dir() else map(Path, glob(location, recursive=True))
    files = sorted(str(file.resolve()) for file in found if file.suffix == ".parquet")
    if not files:
        raise InputError(
            f"there is no Parquet file at {location}; name a file, a folder or a glob."
        )
    return None, files


def _folder_of(location: str) -> str:
    plain = Path(location.split("*")[0])
    return str((plain if plain.is_dir() else plain.parent).resolve())


def _row_count(file: str) -> int:
    with _opened(file) as parquet:
        return parquet.metadata.num_rows


def _opened(file: str) -> Any:
    try:
        return open_parquet(file)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file} is not a whole Parquet file: {error}.") from error


def _find_columns(file: str, *, is_dataset: bool) -> _Columns:
    with _opened(file) as parquet:
        schema: pa.Schema = parquet.schema_arrow
    image = _first_of(_IMAGE_NAMES, schema, file, "pictures or paths")
    caption = _first_of(_CAPTION_NAMES, schema, file, "captions")
    parts = {"id", image, caption, "conversations"}
    own = [f for f in schema if f.name not in parts]
    taken = [f.name for f in own if f.name in (*STAGE_COLUMNS, *SOURCE_COLUMNS)]
    if taken and not is_dataset:
        raise InputError(
            f"column {taken[0]} of {file} has a name that scoring itself writes; rename it."
        )
    return _Columns(
        id="id" if "id" in schema.names else None,
        image=image,
        caption=caption,
        conversations="conversations" if "conversations" in schema.names else None,
        own=pa.schema([f.remove_metadata() for f in own if f.name not in taken]),
    )


def _first_of(names: tuple[str, ...], schema: pa.Schema, file: str, what: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise InputError(
        f"{file} has no column of {what}: it has {', '.join(schema.names)}; "
        f"name one of them {names[0]}."
    )


def _as_images(column: pa.Array) -> pa.StructArray:
    """Pictures as struct<bytes, path>, from such a struct, from bytes or from paths."""
    nulls = pa.nulls(len(column))
    if pa.types.is_struct(column.type):
        names = [field.name for field in column.type]
        fields = [column.field(n) if n in names else nulls for n in ("bytes", "path")]
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        fields = [column, nulls]
    else:
        fields = [nulls, column]
    return pa.StructArray.from_arrays(
        [fields[0].cast(pa.binary()), fields[1].cast(pa.binary())], names=["bytes", "path"]
    )


def _raw_text(column: pa.Array) -> list[Any]:
    """Values as bytes where the column is text, since Arrow's text need not be valid UTF-8."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.binary())
    return column.to_pylist()
