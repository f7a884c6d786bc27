"""Streaming records of a JSON list or JSON Lines file, local or remote."""

import codecs
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import ijson

from aligncurate.sources.listing import opened
from aligncurate.sources.metadata import MARK_INVALID
from alignshared import InputError
from alignshared.errors import one_line

_CHUNK = 1 << 20
_MAX_LINE = 1 << 26
"""Maximum bytes of a JSON Lines record."""

_MAX_DEPTH = 100
"""Maximum nesting of a record; LLaVA's have three levels."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """An invalid JSON line and the parser's message."""

    detail: str


def records_of(location: str) -> Iterator[Any]:
    """Yield the records of the `.json` or `.jsonl` file at `location`, of any type, and Malformed.

    One record is held in memory.

    Raises:
        InputError: the file is missing, or a `.json` is not a list or damaged.
    """
    with opened(location) as raw:
        lines = location.endswith(".jsonl")
        if not lines:
            _require_list(raw, location)
        stream = io.BufferedReader(_ValidUtf8(raw), _CHUNK)
        yield from _json_lines(stream) if lines else _json_list(stream, location)


def _json_lines(stream: BinaryIO) -> Iterator[Any]:
    number = 0
    while line := stream.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(_MAX_LINE)
            yield Malformed(f"line {number} is longer than {_MAX_LINE:,} bytes")
        elif line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                record = Malformed(f"line {number} is not JSON: {one_line(error, 200)}")
            yield record


def _json_list(stream: BinaryIO, location: str) -> Iterator[Any]:
    try:
        events = ijson.basic_parse(stream, use_float=True)
        next(events)  # the beginning of the list
        yield from _values(events)
    except (ijson.JSONError, ValueError, RecursionError) as error:  # ValueError: endless numbers
        raise InputError(
            f"{location} is damaged JSON ({one_line(error, 120)}); "
            "it may have been cut short, fetch it again."
        ) from error


def _values(events: Iterable[tuple[str, Any]]) -> Iterator[Any]:
    """Yield the elements of the list that parser `events` are within; Malformed for too deep ones.

    ijson.items tracks the full path, which takes quadratic time on text made of brackets.
    """
    builder, depth, too_deep = ijson.ObjectBuilder(), 0, False
    for event, value in events:
        if event == "end_array" and depth == 0:  # the end of the whole list
            continue
        depth += event in ("start_map", "start_array")
        too_deep |= depth > _MAX_DEPTH
        if not too_deep:
            builder.event(event, value)
        depth -= event in ("end_map", "end_array")
        if depth == 0:
            yield Malformed(f"nested more than {_MAX_DEPTH} deep") if too_deep else builder.value
            builder, too_deep = ijson.ObjectBuilder(), False


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
    """Stream of `raw` with invalid UTF-8 marked, so that it affects only one record."""

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
