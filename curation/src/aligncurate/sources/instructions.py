"""LLaVA instruction data in JSON or JSON Lines: conversations, mostly about an image."""

import hashlib
import json
from itertools import pairwise
from typing import Any

from aligncurate.sources.json_records import Malformed
from aligncurate.sources.llava import LlavaSource, RowMaker, id_of, rejected_row, turns_of
from aligncurate.sources.metadata import MAX_CHARACTERS, is_valid_text
from alignshared import Reason

_ASKS = ("human", "user")
_ANSWERS = ("gpt", "assistant")


class InstructionSource(LlavaSource):
    """Conversations in the `.json` or `.jsonl` file at `location`.

    Unlike pairs for scoring, records may lack an image, and several may share an image and its id,
    as in LLaVA's files: the second becomes `id#2`. Exact repeats of a record are rejected.
    """

    def identity(self) -> dict[str, Any]:
        """File name and digest, and the image folder."""
        return super().identity() | {"kind": "instructions"}

    def _row_maker(self) -> RowMaker:
        ids = _Ids()
        return lambda record, derived_id: _index_row(record, derived_id, ids)


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


def _index_row(record: Any, derived_id: str, ids: _Ids) -> dict[str, Any]:
    if isinstance(record, Malformed):
        return rejected_row(derived_id, None, Reason.MALFORMED_RECORD, record.detail)
    if not isinstance(record, dict):
        kind = type(record).__name__
        return rejected_row(derived_id, None, Reason.MALFORMED_RECORD, f"a {kind}, not an object")
    id_, image = id_of(record, derived_id), record.get("image") or None
    problem = _problem(id_, image, record.get("conversations"))
    unique = None if problem else ids.give(id_, [image, record["conversations"]])
    if unique is None:
        path = image if isinstance(image, str) and is_valid_text(image) else None
        repeats = Reason.DUPLICATE_ID, f"an earlier record {id_!r} says the same"
        return rejected_row(id_ if is_valid_text(id_) else derived_id, path, *(problem or repeats))
    turns = turns_of(record) or []
    return {
        "id": unique,
        "image": None if image is None else {"bytes": None, "path": image},
        "caption": next(turn["value"] for turn in turns if turn["from"] in _ANSWERS),
        "conversations": turns,
        "reason": None,
        "detail": None,
    }


def _problem(id_: str, image: Any, turns: Any) -> tuple[Reason, str] | None:
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
