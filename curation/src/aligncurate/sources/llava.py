"""LLaVA's JSON (a list of records) and JSON Lines, with images in a folder.

The file is read once, record by record, into a Parquet index in the run's folder; workers read only
the index.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from aligncurate.core.hub import HubError, hub_file
from aligncurate.sources.files import resolve_image_root
from aligncurate.sources.index import index_rows, write_index
from aligncurate.sources.json_records import Malformed, records_of
from aligncurate.sources.listing import opened, split_location
from aligncurate.sources.metadata import caption_problem, is_valid_text, writable
from aligncurate.sources.source import RawBatch, Unit, cut_into_units, parquet_rows
from alignshared import InputError, Reason, Reject, Storage
from alignshared.errors import one_line
from alignshared.schema import SOURCE_COLUMNS
from alignshared.stores.filesystems import normal_location

_INDEX_FILE = "index.parquet"
_INDEX_SCHEMA = pa.schema(
    [*SOURCE_COLUMNS.items(), ("reason", pa.string()), ("detail", pa.string())]
)
_CHUNK = 1 << 20

LAION_NAME = "laion-cc-sbu"
_REPO = "liuhaotian/LLaVA-Pretrain"
_RECORDS = "blip_laion_cc_sbu_558k.json"
_IMAGES = "images.zip"
_CACHE = Path("~/.cache/alignstack/laion-cc-sbu")
_UNPACKED = ".unpacked"

RowMaker = Callable[[Any, str], dict[str, Any]]


class LlavaSource:
    """Records of the `.json` or `.jsonl` file at `location`; images are under `image_root`.

    The caption is the first `gpt` turn, or `caption` for records without conversations. An id is a
    duplicate if an earlier usable record has it.

    Raises:
        InputError: the file or the folder is missing.
    """

    def __init__(self, location: str, image_root: str | None = None, name: str = "") -> None:
        self.location = normal_location(location)
        storage, name_there = split_location(self.location)
        if storage.info(name_there).type != fs.FileType.File:
            raise InputError(f"there is no file {location}; give the LLaVA JSON as --input.")
        self._stem = name_there.rpartition(".")[0]
        self.name = name or self._stem
        self.image_root = resolve_image_root(image_root, storage.location)

    def identity(self) -> dict[str, Any]:
        """File name and digest, and the image folder."""
        sha256 = hashlib.sha256()
        with opened(self.location) as stream:
            while chunk := stream.read(_CHUNK):
                sha256.update(chunk)
        return {
            "kind": "llava",
            "location": self.location,
            "digest": sha256.hexdigest(),
            "image_root": self.image_root,
        }

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Write the index to `work`, unless an earlier run did, and cut it into units.

        Raises:
            InputError: the file is not JSON, or not a list of records.
        """
        if not work.exists(_INDEX_FILE):
            self._write_index(work)
        location = f"{work.location}/{_INDEX_FILE}"
        return cut_into_units([(location, index_rows(work, _INDEX_FILE))], shard_rows)

    def own_columns(self) -> pa.Schema:
        """None: other fields of a record are dropped."""
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

    def _write_index(self, work: Storage) -> None:
        records = (
            (f"{self._stem}-{number:09d}", record)
            for number, record in enumerate(records_of(self.location))
        )
        row_of = self._row_maker()
        rows = (_row_or_reject(row_of, record, derived_id) for derived_id, record in records)
        write_index(work, _INDEX_FILE, _INDEX_SCHEMA, rows)

    def _row_maker(self) -> RowMaker:
        """Return a function from a record and a default id to an index row."""
        seen: set[str] = set()
        return lambda record, derived_id: _index_row(record, derived_id, seen)


def _row_or_reject(row_of: RowMaker, record: Any, derived_id: str) -> dict[str, Any]:
    try:
        return row_of(record, derived_id)
    except (RecursionError, ValueError) as error:  # extreme nesting, endless numbers
        detail = f"the record cannot be read: {one_line(error)}"
        return rejected_row(derived_id, None, Reason.MALFORMED_RECORD, detail)


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
    """Index row of an unusable record."""
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
    own = record.get("id")
    return str(own) if isinstance(own, str | int) and str(own) else derived


def _caption_of(record: dict[str, Any]) -> Any:
    if "conversations" not in record:
        return record.get("caption")
    turns = record["conversations"]
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") == "gpt":
            return turn.get("value")
    return None


def turns_of(record: dict[str, Any]) -> list[dict[str, str | None]] | None:
    """Conversation of a record as stored; None without one."""
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


def laion_cc_sbu(image_root: str | None = None) -> LlavaSource:
    """Open LLaVA-Pretrain's 558K pairs in `image_root`, or download them from the Hub to the cache
    (28 GB, plus 28 GB unpacked).

    Raises:
        InputError: the data is missing and cannot be downloaded.
    """
    if image_root is not None:
        records = f"{normal_location(image_root)}/{_RECORDS}"
        if not Storage(image_root).exists(_RECORDS):
            raise InputError(
                f"{records} is not there; place {_RECORDS} of {_REPO} in {image_root}, beside the "
                f"folders of its {_IMAGES}."
            )
        return LlavaSource(records, image_root, LAION_NAME)
    try:
        records = hub_file(_REPO, [_RECORDS], "dataset")
        images = _unpacked(hub_file(_REPO, [_IMAGES], "dataset"))
    except HubError as error:
        raise InputError(
            f"{LAION_NAME} is not in the Hugging Face cache and cannot be downloaded ({error}); "
            f"download {_RECORDS} and {_IMAGES} of the dataset {_REPO} elsewhere, unpack both into "
            "one folder, and give it as --image-root."
        ) from error
    return LlavaSource(str(records), str(images), LAION_NAME)


def _unpacked(archive: Path) -> Path:
    folder = _CACHE.expanduser() / "images"
    done = folder / _UNPACKED
    if not done.exists():
        try:
            with zipfile.ZipFile(archive) as files:
                files.extractall(folder)  # zipfile itself keeps members inside the folder
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(
                f"{archive} cannot be unpacked into {folder}: {error}; make room there, or unpack "
                "it elsewhere and give that folder as --image-root."
            ) from error
        done.touch()
    return folder
