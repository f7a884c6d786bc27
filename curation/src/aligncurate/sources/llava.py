"""LLaVA's JSON (a list of records) and JSON Lines, with the pictures in a folder.

The file is read once, record by record, into a Parquet index in the run's folder; workers read
their rows of the index, never the JSON.
"""

import codecs
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.sources.captions import MARK_INVALID, caption_problem, is_valid_text, writable
from aligncurate.sources.files import picture_root
from aligncurate.sources.source import RawBatch, Unit, cut_into_units, parquet_rows
from alignshared import InputError, Reason, Reject, Storage
from alignshared.schema import SOURCE_COLUMNS
from alignshared.shards import writing_shard

_INDEX_FILE = "index.parquet"
_INDEX_SCHEMA = pa.schema(
    [*SOURCE_COLUMNS.items(), ("reason", pa.string()), ("detail", pa.string())]
)
_ROWS_AT_ONCE = 4096
_CHUNK = 1 << 16


class LlavaSource:
    """Records of the `.json` or `.jsonl` file at `location`; pictures lie under `image_root`.

    The caption is the first `gpt` turn, or `caption` where a record has no conversations. An id
    counts as a duplicate if an earlier record that could be used has it.

    Raises:
        InputError: the file or the folder is not there.
    """

    def __init__(self, location: str, image_root: str | None = None, name: str = "") -> None:
        path = Path(location)
        if not path.is_file():
            raise InputError(f"there is no file {location}; give the LLaVA JSON as --input.")
        root = picture_root(image_root) or path.parent
        self.location = str(path.resolve())
        self.image_root = str(root.resolve())
        self.name = name or path.stem

    def identity(self) -> dict[str, Any]:
        """The file's name and digest, and the folder of the pictures."""
        with open(self.location, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {
            "kind": "llava",
            "location": self.location,
            "digest": digest,
            "image_root": self.image_root,
        }

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Write the index into `work` unless an earlier run did, and cut it into units.

        Raises:
            InputError: the file is not JSON, or not a list of records.
        """
        if not work.exists(_INDEX_FILE):
            self._write_index(work)
        location = f"{work.location}/{_INDEX_FILE}"
        with work.open(_INDEX_FILE) as stream:
            rows = pq.read_metadata(stream).num_rows
        return cut_into_units([(location, rows)], shard_rows)

    def own_columns(self) -> pa.Schema:
        """None: other fields of a record are not carried."""
        return pa.schema([])

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RawBatch]:
        """Rows of `unit` from the index."""
        for _, batch in parquet_rows(unit, _INDEX_SCHEMA.names, batch_rows):
            table = pa.Table.from_batches([batch])
            usable = table.filter(table["reason"].is_null())
            rejects = [
                Reject(r["id"], r["image"]["path"], Reason(r["reason"]), r["detail"])
                for r in table.filter(table["reason"].is_valid())
                .drop_columns(["conversations"])
                .to_pylist()
            ]
            yield RawBatch(usable.select(list(SOURCE_COLUMNS)), rejects)

    def _index_rows(self, records: Iterator[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
        """A row of the index for each of `records`, which come with the id of those without one."""
        seen: set[str] = set()
        for derived_id, record in records:
            yield _index_row(record, derived_id, seen)

    def _write_index(self, work: Storage) -> None:
        stem = Path(self.location).stem
        records = (
            (f"{stem}-{number:09d}", record)
            for number, record in enumerate(_records(self.location))
        )
        with writing_shard(work, _INDEX_FILE, _INDEX_SCHEMA) as (writer, _):
            rows: list[dict[str, Any]] = []
            for row in self._index_rows(records):
                rows.append(row)
                if len(rows) == _ROWS_AT_ONCE:
                    writer.write(pa.Table.from_pylist(rows, schema=_INDEX_SCHEMA))
                    rows = []
            if rows:
                writer.write(pa.Table.from_pylist(rows, schema=_INDEX_SCHEMA))


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is not JSON, and what its parser said."""

    detail: str


def _records(location: str) -> Iterator[Any]:
    with open(location, "rb") as raw:
        lines = location.endswith(".jsonl")
        if not lines:
            _require_list(raw, location)
        stream = io.BufferedReader(_ValidUtf8(raw), _CHUNK)
        yield from _json_lines(stream) if lines else _json_list(stream, location)


def _json_lines(stream: BinaryIO) -> Iterator[Any]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Malformed(f"line {number} is not JSON: {error}")


def _json_list(stream: BinaryIO, location: str) -> Iterator[Any]:
    try:
        yield from ijson.items(stream, "item", use_float=True)
    except ijson.JSONError as error:
        raise InputError(
            f"{location} is damaged JSON ({' '.join(str(error).split())[:120]}); "
            "it may have been cut short, fetch it again."
        ) from error


def _require_list(raw: BinaryIO, location: str) -> None:
    head = raw.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if not head.startswith(b"["):
        raise InputError(
            f"{location} is not a JSON list of records; give LLaVA's format: "
            '[{"id": ..., "image": ..., "conversations": [...]}, ...], or one record a line in a '
            ".jsonl file."
        )
    raw.seek(0)


class _ValidUtf8(io.RawIOBase):
    """The bytes of `raw` with invalid UTF-8 marked, so that it spoils one record only."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors=MARK_INVALID)
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._raw.read(_CHUNK)
            self._ready = self._decoder.decode(chunk, final=not chunk).encode()
            if not chunk:
                break
        taken, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _index_row(record: Any, derived_id: str, seen: set[str]) -> dict[str, Any]:
    if isinstance(record, Malformed):
        return rejected_row(derived_id, None, Reason.MALFORMED_RECORD, record.detail)
    if not isinstance(record, dict):
        kind = type(record).__name__
        return rejected_row(derived_id, None, Reason.MALFORMED_RECORD, f"a {kind}, not an object")
    id_, image, caption = id_of(record, derived_id), record.get("image"), _caption_of(record)
    problem = _problem(id_, image, caption, seen)
    if problem:
        path = image if isinstance(image, str) and is_valid_text(image) else None
        return rejected_row(id_ if is_valid_text(id_) else derived_id, path, *problem)
    seen.add(id_)
    return {
        "id": id_,
        "image": {"bytes": None, "path": image},
        "caption": caption,
        "conversations": turns_of(record),
        "reason": None,
        "detail": None,
    }


def _problem(id_: str, image: Any, caption: Any, seen: set[str]) -> tuple[Reason, str] | None:
    if image is None or image == "":
        return Reason.NO_IMAGE, "the record has no image"
    if not isinstance(image, str):
        return Reason.MALFORMED_RECORD, f"image is {type(image).__name__}, not one path"
    if not is_valid_text(id_ + image):
        return Reason.INVALID_UTF8, "the id or the image path is not valid UTF-8"
    if id_ in seen:
        return Reason.DUPLICATE_ID, f"the id {id_!r} occurs in an earlier record"
    return caption_problem(caption)


def rejected_row(id_: str, path: str | None, reason: Reason, detail: str) -> dict[str, Any]:
    """A row of the index for a record that cannot be used."""
    return {
        "id": id_,
        "image": {"bytes": None, "path": path},
        "caption": None,
        "conversations": None,
        "reason": reason.value,
        "detail": detail,
    }


def id_of(record: dict[str, Any], derived: str) -> str:
    """The record's own id, or `derived`."""
    given = record.get("id")
    return str(given) if isinstance(given, str | int) and str(given) else derived


def _caption_of(record: dict[str, Any]) -> Any:
    if "conversations" not in record:
        return record.get("caption")
    turns = record["conversations"]
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") == "gpt":
            return turn.get("value")
    return None


def turns_of(record: dict[str, Any]) -> list[dict[str, str | None]] | None:
    """The record's conversation as it is stored, None if it has none."""
    turns = record.get("conversations")
    if not isinstance(turns, list):
        return None
    return [
        {key: _text_or_none(turn.get(key)) for key in ("from", "value")}
        for turn in turns
        if isinstance(turn, dict)
    ]


def _text_or_none(value: Any) -> str | None:
    return None if value is None else writable(str(value))
