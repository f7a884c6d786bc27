"""What samples a WebDataset tar holds, and where: one row for each.

A sample is the members of one tar with the same name up to the first dot of its last part. Its
picture, `.txt` and `.json` count; of several pictures, the first.
"""

import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from aligncurate.sources.files import MAX_FILE_BYTES, PICTURE_SUFFIXES
from aligncurate.sources.listing import opened
from aligncurate.sources.metadata import (
    MAX_TEXT_BYTES,
    Kinds,
    is_valid_text,
    kind_of,
    parsed_metadata,
)
from aligncurate.sources.tar_members import TarBytes, TarDamage, tar_members
from aligncurate.threads import heartbeat
from alignshared import Reason
from alignshared.filesystems import is_remote

_ROLES = ("image", "caption", "metadata")
TAR_INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("tar", pa.string()),
        ("path", pa.string()),
        *((f"{role}_{part}", pa.int64()) for role in _ROLES for part in ("at", "size")),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""A sample: its id, the tar, the picture's name in it, and first byte and size of its parts."""

_NAME = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<suffix>[^/]+)", re.DOTALL)
_MAX_ID = 4096
_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 16, 1 << 22
_LIMITS = {"image": MAX_FILE_BYTES, "caption": MAX_TEXT_BYTES, "metadata": MAX_TEXT_BYTES}


@dataclass(slots=True)
class _Sample:
    key: str
    suffixes: set[str] = field(default_factory=set)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    path: str | None = None
    has_caption: bool = False
    own_id: str | None = None
    problem: tuple[Reason, str] | None = None


@dataclass(slots=True)
class TarIndex:
    """The rows of one tar's index, the kinds of its metadata's columns, and its damage, if any."""

    rows: list[dict[str, Any]]
    kinds: Kinds
    damage: str | None


def index_tar(location: str, prefix: str) -> TarIndex:
    """Read the headers and the metadata of the tar at `location`; ids begin with `prefix` and `/`.

    What lies before a damage is kept; what is lost is one row with a reason.

    Raises:
        InputError: the tar is not there, or is compressed.
        AlignError: it can no longer be read.
    """
    with opened(location) as stream:
        data = TarBytes(stream, _REMOTE_WINDOW if is_remote(location) else _LOCAL_WINDOW)
        indexing = _Indexing(data)
        damage = None
        try:
            for member in tar_members(data, location):
                indexing.add(member)
                heartbeat()
        except TarDamage as error:
            damage = str(error)
            indexing.end_in_damage(damage)
    rows = [_row(sample, location, prefix, n) for n, sample in enumerate(indexing.samples)]
    return TarIndex(rows, indexing.kinds, damage)


class _Indexing:
    """The samples of a tar while its members come in."""

    def __init__(self, data: TarBytes) -> None:
        self._data = data
        self._by_key: dict[str, _Sample] = {}
        self.samples: list[_Sample] = []
        self.kinds: Kinds = {}

    def add(self, member: tarfile.TarInfo) -> None:
        """Take one more member; raises TarDamage if the tar ends within it."""
        name = str(PurePosixPath(member.name))
        match = _NAME.fullmatch(name)
        if member.isdir() or match is None:
            return
        sample = self._sample(match["key"], match["suffix"].lower())
        problem = _problem(member, name)
        if problem is not None:
            sample.problem = sample.problem or problem
            return
        role = _role(match["suffix"].lower())
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
        """Count what is lost: the last sample if it lacks a part, else one more."""
        last = self.samples[-1] if self.samples else None
        whole = last is None or (("image" in last.spans and last.has_caption) or last.problem)
        if last is None or whole:
            last = _Sample("rest-of-the-archive")
            self.samples.append(last)
        last.problem = Reason.DAMAGED_ARCHIVE, f"the tar is damaged: {damage}"

    def _sample(self, key: str, suffix: str) -> _Sample:
        sample = self._by_key.get(key)
        if sample is None or suffix in sample.suffixes:
            repeats = sample is not None
            sample = self._by_key[key] = _Sample(key)
            if repeats:
                sample.problem = Reason.DUPLICATE_ID, f"the key {key!r} occurs before in this tar"
            self.samples.append(sample)
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


def _role(suffix: str) -> str | None:
    if f".{suffix}" in PICTURE_SUFFIXES:
        return "image"
    return {"txt": "caption", "json": "metadata"}.get(suffix)


def _problem(member: tarfile.TarInfo, name: str) -> tuple[Reason, str] | None:
    if not is_valid_text(name):
        return Reason.INVALID_UTF8, "the member's name is not valid UTF-8"
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or "\\" in name:
        return Reason.PATH_OUTSIDE_ROOT, f"the member is named {name!r}"
    if not member.isreg() or member.issparse():
        return Reason.MALFORMED_RECORD, f"{name} is {_kind(member)}, not a plain file"
    return None


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.LNKTYPE: "a hard link",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.FIFOTYPE: "a pipe",
    }
    return kinds.get(member.type, "of a special type")


def _row(sample: _Sample, tar: str, prefix: str, number: int) -> dict[str, Any]:
    problem = sample.problem
    if problem is None and "image" not in sample.spans:
        problem = Reason.NO_IMAGE, "the sample has no picture"
    if problem is None and not sample.has_caption:
        problem = Reason.NO_CAPTION, "the sample has no .txt, and no caption in a .json"
    key = sample.key if is_valid_text(sample.key) else f"{number:09d}"
    row: dict[str, Any] = {
        "id": sample.own_id or f"{prefix}/{key}",
        "tar": tar,
        "path": sample.path,
    }
    for role, (at, size) in sample.spans.items():
        row |= {f"{role}_at": at, f"{role}_size": size}
    reason, detail = problem if problem else (None, None)
    return row | {"reason": reason and reason.value, "detail": detail}
