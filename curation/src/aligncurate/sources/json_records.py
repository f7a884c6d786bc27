"""The records of a JSON list or of JSON Lines, one at a time, from disk or from a store."""

import codecs
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import ijson

from aligncurate.sources.captions import MARK_INVALID
from aligncurate.sources.listing import split_location
from alignshared import InputError
from alignshared.filesystems import one_line

_CHUNK = 1 << 20
_MAX_LINE = 1 << 26
"""Bytes of a line of JSON Lines; a longer one is no record."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is not JSON, and what its parser said."""

    detail: str


def records_of(location: str) -> Iterator[Any]:
    """The records of the `.json` or `.jsonl` file at `location`, of any type, and Malformed.

    Holds one record in memory.

    Raises:
        InputError: the file is not there, or a `.json` is no list or is damaged.
    """
    storage, name = split_location(location)
    with storage.open(name) as raw:
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
        return Malformed(f"line {number} is not JSON: {one_line(error)[:200]}")


def _json_list(stream: BinaryIO, location: str) -> Iterator[Any]:
    try:
        yield from ijson.items(stream, "item", use_float=True)
    except (ijson.JSONError, ValueError, RecursionError) as error:  # also of endless numbers
        raise InputError(
            f"{location} is damaged JSON ({one_line(error)[:120]}); "
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
