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
            yield _parsed(line, number)


def _parsed(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return Malformed(f"line {number} is not JSON: {one_line(error, 200)}")


def _json_list(stream: BinaryIO, location: str) -> Iterator[Any]:
    try:
        events = ijson.basic_parse(stream, use_float=True)
        next(events)  # the beginning of the list
        yield from _Values().of(events)
    except (ijson.JSONError, ValueError, RecursionError) as error:  # ValueError: endless numbers
        raise InputError(
            f"{location} is damaged JSON ({one_line(error, 120)}); "
            "it may have been cut short, fetch it again."
        ) from error


class _Values:
    """Builds list values from parser events, up to a maximum depth.

    ijson's own builder tracks the full path, which takes quadratic time on text made of brackets.
    """

    def __init__(self) -> None:
        self._holders: list[Any] = []
        self._keys: list[str] = []
        self._beyond = 0
        self._spoilt = False

    def of(self, events: Iterable[tuple[str, Any]]) -> Iterator[Any]:
        """Yield the values; Malformed for those nested deeper than _MAX_DEPTH."""
        for event, value in events:
            if event in ("start_map", "start_array"):
                self._begin({} if event == "start_map" else [])
            elif event in ("end_map", "end_array"):
                yield from self._end()
            elif self._beyond:
                continue
            elif event == "map_key":
                self._keys[-1] = value
            else:
                yield from self._take(value)

    def _begin(self, holder: Any) -> None:
        if self._beyond or len(self._holders) == _MAX_DEPTH:
            self._beyond += 1
            self._spoilt = True
        else:
            self._holders.append(holder)
            self._keys.append("")

    def _end(self) -> Iterator[Any]:
        if self._beyond:
            self._beyond -= 1
        elif self._holders:  # else it is the end of the whole list
            self._keys.pop()
            yield from self._take(self._holders.pop())

    def _take(self, value: Any) -> Iterator[Any]:
        """Add `value` to its container; yield it if it is a complete list element."""
        if not self._holders:
            yield Malformed(f"nested more than {_MAX_DEPTH} deep") if self._spoilt else value
            self._spoilt = False
        elif isinstance(self._holders[-1], dict):
            self._holders[-1][self._keys[-1]] = value
        else:
            self._holders[-1].append(value)


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
