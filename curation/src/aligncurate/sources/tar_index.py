"""Index of a WebDataset tar: one row per sample with the offsets of its parts.

A sample is all members of a tar whose names agree up to the first dot of the last path component.
Its first image, `.txt` and `.json` are used. Nothing is unpacked and tars are untrusted: headers
are read through a window with a size limit, sizes are checked against the file's, and damaged
headers, at which Python's tarfile stops silently, are reported.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from aligncurate.sources.files import IMAGE_SUFFIXES, MAX_FILE_BYTES
from aligncurate.sources.listing import opened
from aligncurate.sources.metadata import (
    MAX_TEXT_BYTES,
    Kinds,
    is_valid_text,
    kind_of,
    parsed_metadata,
)
from aligncurate.threads import heartbeat
from alignshared import InputError, Reason
from alignshared.stores.filesystems import is_remote

ROLES = ("image", "caption", "metadata")
TAR_INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("tar", pa.string()),
        ("path", pa.string()),
        *((f"{role}_{part}", pa.int64()) for role in ROLES for part in ("at", "size")),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""A sample: its id, tar, image name, and first byte and size of each part."""

_ROLE_OF = {"txt": "caption", "json": "metadata"} | dict.fromkeys(
    (suffix[1:] for suffix in IMAGE_SUFFIXES), "image"
)
_NAME = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<suffix>[^/]+)", re.DOTALL)
_MAX_ID = 4096
_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 16, 1 << 22
_LIMITS = {"image": MAX_FILE_BYTES, "caption": MAX_TEXT_BYTES, "metadata": MAX_TEXT_BYTES}
_MAX_HEADER = 1 << 20
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, LookupError)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_END_MARK = bytes(tarfile.BLOCKSIZE)


class TarDamage(Exception):
    """Error for a damaged tar; the message is a clause: where and why."""


class TarBytes:
    """Bytes of a tar, read in windows of `window` bytes to save requests."""

    def __init__(self, stream: Any, window: int) -> None:
        self._stream = stream
        self._window = window
        self._held = b""
        self._held_at = 0
        self._at = 0
        self.size: int = stream.size()

    def seek(self, position: int) -> int:
        self._at = position
        return position

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        """Read the next `count` bytes, fewer at the end; TarDamage if more than any header has."""
        if not 0 <= count <= _MAX_HEADER:
            raise TarDamage(f"the header at byte {self._at:,} claims to have {count:,} bytes")
        data = self.at(self._at, count)
        self._at += len(data)
        return data

    def at(self, position: int, count: int) -> bytes:
        """Read `count` bytes at `position`, fewer at the end."""
        begin = position - self._held_at
        if not 0 <= begin <= begin + count <= len(self._held) and position < self.size:
            size = min(max(count, self._window), self.size - position)
            self._held = self._stream.read_at(size, position)
            self._held_at, begin = position, 0
        return self._held[begin : begin + count] if begin >= 0 else b""


@dataclass(slots=True)
class _Sample:
    key: str
    suffixes: set[str] = field(default_factory=set)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    path: str | None = None
    has_caption: bool = False
    own_id: str | None = None
    problem: tuple[Reason, str] | None = None


def index_tar(location: str, prefix: str) -> "TarIndex":
    """Index the tar at `location` from its headers and metadata; ids start with `prefix` and `/`.

    Samples before any damage are kept; the loss is recorded as one row with a reason.

    Raises:
        InputError: the tar is missing or compressed.
        AlignError: the tar is no longer readable.
    """
    with opened(location) as stream:
        data = TarBytes(stream, _REMOTE_WINDOW if is_remote(location) else _LOCAL_WINDOW)
        index = TarIndex(data, location, prefix)
        try:
            for member in tar_members(data, location):
                index.add(member)
                heartbeat()
        except TarDamage as error:
            index.end_in_damage(str(error))
    return index


class TarIndex:
    """Samples of a tar, from its members, kinds of their metadata, and damage to it or ""."""

    def __init__(self, data: TarBytes, location: str, prefix: str) -> None:
        self._data = data
        self._location = location
        self._prefix = prefix
        self._by_key: dict[str, _Sample] = {}
        self._samples: list[_Sample] = []
        self.kinds: Kinds = {}
        self.damage = ""

    def add(self, member: tarfile.TarInfo) -> None:
        """Add a member; raises TarDamage if the tar ends within it."""
        name = str(PurePosixPath(member.name))
        match = _NAME.fullmatch(name)
        if member.isdir() or match is None:
            return
        suffix = match["suffix"].lower()
        sample = self._sample(match["key"], suffix)
        if (problem := _problem(member, name)) is not None:
            sample.problem = sample.problem or problem
            return
        role = _ROLE_OF.get(suffix)
        if role is None or role in sample.spans:
            return
        if member.offset_data + member.size > self._data.size:
            raise TarDamage(f"{name} is cut short")
        if member.size > _LIMITS[role]:
            detail = f"{name} has {member.size:,} bytes, the limit is {_LIMITS[role]:,}"
            sample.problem = sample.problem or (Reason.MALFORMED_RECORD, detail)
            return
        sample.spans[role] = member.offset_data, member.size
        if role == "image":
            sample.path = name
        elif role == "caption":
            sample.has_caption = True
        else:
            self._read_metadata(sample)

    def end_in_damage(self, damage: str) -> None:
        """Record the loss: the last sample if it lacks a part, else one more."""
        self.damage = damage
        last = self._samples[-1] if self._samples else None
        if last is None or last.problem or ("image" in last.spans and last.has_caption):
            last = _Sample("rest-of-the-archive")
            self._samples.append(last)
        last.problem = Reason.DAMAGED_ARCHIVE, f"the tar is damaged: {damage}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row of TAR_INDEX_SCHEMA for each sample."""
        for number, sample in enumerate(self._samples):
            problem = sample.problem
            if problem is None and "image" not in sample.spans:
                problem = Reason.NO_IMAGE, "the sample has no image"
            if problem is None and not sample.has_caption:
                problem = Reason.NO_CAPTION, "the sample has no .txt, and no caption in a .json"
            key = sample.key if is_valid_text(sample.key) else f"{number:09d}"
            id_ = sample.own_id or f"{self._prefix}/{key}"
            row = {"id": id_, "tar": self._location, "path": sample.path}
            for role, (at, size) in sample.spans.items():
                row |= {f"{role}_at": at, f"{role}_size": size}
            yield row | {"reason": problem[0].value, "detail": problem[1]} if problem else row

    def _sample(self, key: str, suffix: str) -> _Sample:
        sample = self._by_key.get(key)
        if sample is None or suffix in sample.suffixes:
            repeats = sample is not None
            sample = self._by_key[key] = _Sample(key)
            if repeats:
                sample.problem = Reason.DUPLICATE_ID, f"the key {key!r} occurs before in this tar"
            self._samples.append(sample)
        sample.suffixes.add(suffix)
        return sample

    def _read_metadata(self, sample: _Sample) -> None:
        try:
            fields = parsed_metadata(self._data.at(*sample.spans["metadata"]))
        except ValueError as error:
            problem = Reason.MALFORMED_RECORD, f"its .json cannot be read: {error}"
            sample.problem = sample.problem or problem
            return
        own = fields.get("id")
        if isinstance(own, str) and own and len(own) <= _MAX_ID and is_valid_text(own):
            sample.own_id = own
        sample.has_caption = sample.has_caption or isinstance(fields.get("caption"), str)
        for name, value in fields.items():
            self.kinds.setdefault(name, Counter())[kind_of(value)] += 1


def _problem(member: tarfile.TarInfo, name: str) -> tuple[Reason, str] | None:
    if not is_valid_text(name):
        return Reason.INVALID_UTF8, "the member's name is not valid UTF-8"
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or "\\" in name:
        return Reason.PATH_OUTSIDE_ROOT, f"the member is named {name!r}"
    if not member.isreg() or member.issparse():
        kind = _KINDS.get(member.type, "of a special type")
        return Reason.MALFORMED_RECORD, f"{name} is {kind}, not a plain file"
    return None


def tar_members(data: TarBytes, location: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of the tar in order, as described by their headers.

    Raises:
        InputError: the tar is compressed.
        TarDamage: the tar is truncated or damaged; earlier members have been yielded.
    """
    _require_plain(data, location)
    position = -1
    try:
        with tarfile.open(fileobj=cast(IO[bytes], data), mode="r:") as archive:
            while (member := archive.next()) is not None:
                if archive.offset <= position or member.size < 0:
                    raise TarDamage(f"the header at byte {member.offset:,} leads backwards")
                position = archive.offset
                cast(Any, archive).members.clear()  # or it would remember them all
                yield member
            position = archive.offset
    except _DAMAGE as error:
        raise TarDamage(f"after byte {max(position, 0):,}: {error}") from error
    mark = data.at(position, tarfile.BLOCKSIZE)
    if mark != _END_MARK:
        what = "a damaged header" if mark else "no end mark: it was cut short"
        raise TarDamage(f"{what} at byte {position:,}")


def _require_plain(data: TarBytes, location: str) -> None:
    head = data.at(0, 8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise InputError(
                f"{location} is compressed ({name}), and parts of it cannot be read on their own; "
                "unpack it to a plain .tar."
            )
