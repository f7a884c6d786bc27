"""LLaVA's JSON (a list of records) and JSON Lines, with images in a folder: pairs to score, or
instruction data, conversations that are mostly about an image.

The file is read once, record by record, into a Parquet index in the run's folder; workers read only
the index.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from aligncurate.core.hub import HubError, hub_file
from aligncurate.sources.files import resolve_image_root
from aligncurate.sources.json_records import Malformed, records_of
from aligncurate.sources.listing import opened, split_location
from aligncurate.sources.metadata import MAX_CHARACTERS, caption_problem, is_valid_text, writable
from aligncurate.sources.source import RawBatch, Unit, index_units, parquet_rows
from alignshared import InputError, Reason, Reject, Storage
from alignshared.errors import one_line
from alignshared.schema import SOURCE_COLUMNS
from alignshared.stores.filesystems import normal_location

_INDEX_SCHEMA = pa.schema(
    [*SOURCE_COLUMNS.items(), ("reason", pa.string()), ("detail", pa.string())]
)
_ASKS = ("human", "user")
_ANSWERS = ("gpt", "assistant")

LAION_NAME = "laion-cc-sbu"
_REPO = "liuhaotian/LLaVA-Pretrain"
_RECORDS = "blip_laion_cc_sbu_558k.json"
_IMAGES = "images.zip"
_CACHE = Path("~/.cache/alignstack/laion-cc-sbu")
_UNPACKED = ".unpacked"


class _Pair(NamedTuple):
    """Parts of a pair as its record has them, of any type if there is a problem."""

    id: str
    image: Any
    caption: Any
    problem: tuple[Reason, str] | None


_PairOf = Callable[[dict[str, Any], str], _Pair]
"""Makes a pair of a record and its id."""


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
        with opened(self.location) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {
            "kind": "llava",
            "location": self.location,
            "digest": digest,
            "image_root": self.image_root,
        }

    def plan(self, work: Storage, shard_rows: int | None) -> list[Unit]:
        """Write the index to `work`, unless an earlier run did, and cut it into units.

        Raises:
            InputError: the file is not JSON, or not a list of records.
        """
        return index_units(work, _INDEX_SCHEMA, self._index_rows(), shard_rows)

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
                for r in table.filter(table["reason"].is_valid()).to_pylist()
            ]
            yield RawBatch(usable.select(list(SOURCE_COLUMNS)), rejects)

    def _index_rows(self) -> Iterator[dict[str, Any]]:
        pair_of = self._pair_maker()
        for number, record in enumerate(records_of(self.location)):
            derived_id = f"{self._stem}-{number:09d}"
            try:
                yield _index_row(record, derived_id, pair_of)
            except (RecursionError, ValueError) as error:  # extreme nesting, endless numbers
                detail = f"the record cannot be read: {one_line(error)}"
                yield _rejected(derived_id, None, Reason.MALFORMED_RECORD, detail)

    def _pair_maker(self) -> _PairOf:
        seen: set[str] = set()
        return lambda record, id_: _captioned(record, id_, seen)


class InstructionSource(LlavaSource):
    """Conversations in the `.json` or `.jsonl` file at `location`.

    Unlike pairs for scoring, records may lack an image, and several may share an image and its id,
    as in LLaVA's files: the second becomes `id#2`. Exact repeats of a record are rejected.
    """

    def identity(self) -> dict[str, Any]:
        """File name and digest, and the image folder."""
        return super().identity() | {"kind": "instructions"}

    def _pair_maker(self) -> _PairOf:
        ids = _Ids()
        return lambda record, id_: _instruction(record, id_, ids)


def _index_row(record: Any, derived_id: str, pair_of: _PairOf) -> dict[str, Any]:
    if isinstance(record, Malformed):
        return _rejected(derived_id, None, Reason.MALFORMED_RECORD, record.detail)
    if not isinstance(record, dict):
        kind = type(record).__name__
        return _rejected(derived_id, None, Reason.MALFORMED_RECORD, f"a {kind}, not an object")
    own = record.get("id")
    pair = pair_of(record, str(own) if isinstance(own, str | int) and str(own) else derived_id)
    if pair.problem is not None:
        path = pair.image if isinstance(pair.image, str) and is_valid_text(pair.image) else None
        return _rejected(pair.id if is_valid_text(pair.id) else derived_id, path, *pair.problem)
    return {
        "id": pair.id,
        "image": None if pair.image is None else {"bytes": None, "path": pair.image},
        "caption": pair.caption,
        "conversations": _turns_of(record),
    }


def _rejected(id_: str, path: str | None, reason: Reason, detail: str) -> dict[str, Any]:
    image = {"bytes": None, "path": path}
    return {"id": id_, "image": image, "reason": reason.value, "detail": detail}


def _turns_of(record: dict[str, Any]) -> list[dict[str, str | None]] | None:
    """Conversation of a record as stored; None without one."""
    turns = record.get("conversations")
    if not isinstance(turns, list):
        return None
    return [
        {
            key: None if turn.get(key) is None else writable(str(turn[key]))
            for key in ("from", "value")
        }
        for turn in turns
        if isinstance(turn, dict)
    ]


def _captioned(record: dict[str, Any], id_: str, seen: set[str]) -> _Pair:
    """Make a pair to score; ids of pairs made before are in `seen`."""
    image, caption = record.get("image"), _caption_of(record)
    if image is None or image == "":
        problem = Reason.NO_IMAGE, "the record has no image"
    elif not isinstance(image, str):
        problem = Reason.MALFORMED_RECORD, f"image is {type(image).__name__}, not one path"
    elif not is_valid_text(id_ + image):
        problem = Reason.INVALID_UTF8, "the id or the image path is not valid UTF-8"
    elif id_ in seen:
        problem = Reason.DUPLICATE_ID, f"the id {id_!r} occurs in an earlier record"
    else:
        problem = caption_problem(caption)
    if problem is None:
        seen.add(id_)
    return _Pair(id_, image, caption, problem)


def _caption_of(record: dict[str, Any]) -> Any:
    if "conversations" not in record:
        return record.get("caption")
    turns = record["conversations"]
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") == "gpt":
            return turn.get("value")
    return None


class _Ids:
    """Assigned ids, and digests of their records."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._given: set[str] = set()
        self._contents: set[bytes] = set()

    def give(self, id_: str, content: Any) -> str | None:
        """Return `id_`, made unique; None for an exact repeat of a record."""
        text = json.dumps([id_, content], sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self._contents:
            return None
        self._contents.add(digest)
        unique = id_
        while unique in self._given:
            self._times[id_] = self._times.get(id_, 1) + 1
            unique = f"{id_}#{self._times[id_]}"
        self._given.add(unique)
        return unique


def _instruction(record: dict[str, Any], id_: str, ids: _Ids) -> _Pair:
    """Make a pair of a conversation; its caption is the first answer."""
    image, turns = record.get("image") or None, record.get("conversations")
    problem = _instruction_problem(id_, image, turns)
    if problem is not None:
        return _Pair(id_, image, None, problem)
    unique = ids.give(id_, [image, turns])
    if unique is None:
        problem = Reason.DUPLICATE_ID, f"an earlier record {id_!r} says the same"
        return _Pair(id_, image, None, problem)
    answers = (turn["value"] for turn in record["conversations"] if turn["from"] in _ANSWERS)
    return _Pair(unique, image, next(answers), None)


def _instruction_problem(id_: str, image: Any, turns: Any) -> tuple[Reason, str] | None:
    if image is not None and not isinstance(image, str):
        return Reason.MALFORMED_RECORD, f"image is {type(image).__name__}, not one path"
    if not isinstance(turns, list):
        return Reason.MALFORMED_RECORD, "there is no list of conversations"
    for number, turn in enumerate(turns, start=1):
        speaker, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else ("", 0)
        if not isinstance(speaker, str) or not isinstance(text, str):
            return Reason.MALFORMED_RECORD, f"turn {number} has no text for from and value"
        if len(speaker) + len(text) > MAX_CHARACTERS:
            return Reason.MALFORMED_RECORD, f"turn {number} has {len(text):,} characters"
    if not is_valid_text(id_ + (image or "") + "".join(t["from"] + t["value"] for t in turns)):
        return Reason.INVALID_UTF8, "the id, the image path or a turn is not valid UTF-8"
    if not any(_is_answered(*pair) for pair in pairwise(turns)):
        return Reason.MALFORMED_RECORD, "there is no question of human with an answer of gpt"
    return None


def _is_answered(question: dict[str, str], answer: dict[str, str]) -> bool:
    return (
        question["from"] in _ASKS and answer["from"] in _ANSWERS and bool(answer["value"].strip())
    )


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
