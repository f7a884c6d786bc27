"""Files of a location: one file, a folder (recursive), a glob, or a brace range.

It works the same on disk and in object stores.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from alignshared import AlignError, InputError, Storage
from alignshared.errors import one_line
from alignshared.stores.filesystems import normal_location

_WILD = re.compile(r"[*?\[]")
_BEFORE_WILD = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{},]*(?:,[^{},]*)+)\}")
_TOKENS = re.compile(r"(\*+|\?|\[!?[^]/]+\])")
_MAX_EXPANDED = 1_000_000
_LISTED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file: path or URI, size in bytes, and modification time in nanoseconds."""

    location: str
    size: int
    time_ns: int


def find_files(location: str) -> list[FoundFile]:
    """Return the files of `location`, sorted; all names are held in memory.

    Links to files count as files; links to folders are not followed.

    Raises:
        InputError: a folder cannot be listed, or a file named by braces is missing.
    """
    whole = normal_location(location)
    if (files := _at(whole)) is not None:
        return files
    patterns = expand_braces(whole)
    plain = [pattern for pattern in patterns if not _WILD.search(pattern)]
    files = _named(plain) if patterns != [whole] else []
    for pattern in patterns:
        if _WILD.search(pattern):
            files += _matching(pattern)
    return sorted(set(files), key=lambda file: file.location)


def expand_braces(pattern: str) -> list[str]:
    """Expand `x-{08..10}.tar` to `x-08.tar`, `x-09.tar`, `x-10.tar`; `{a,b}` likewise.

    Raises:
        InputError: there would be more than a million.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    low, dots, high = match[1].partition("..")
    if dots and low.isdigit() and high.isdigit():
        _require_few(int(high) - int(low), pattern)
        choices = [str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)]
    else:
        choices = match[1].split(",")
    rests = expand_braces(pattern[match.end() :])
    _require_few(len(choices) * len(rests), pattern)
    return [f"{pattern[: match.start()]}{choice}{rest}" for choice in choices for rest in rests]


def split_location(location: str) -> tuple[Storage, str]:
    """Split `location` into its folder and its name."""
    folder, _, name = location.rpartition("/")
    return Storage(folder or "/"), name


@contextmanager
def opened(location: str) -> Iterator[pa.NativeFile]:
    """Open the file at `location` for random access.

    Raises:
        InputError: it is not there.
        AlignError: a disk or store failure.
    """
    storage, name = split_location(location)
    try:
        with storage.open(name) as stream:
            yield stream
    except OSError as error:
        raise AlignError(
            f"{location} cannot be read: {one_line(error)}; run the same command to resume."
        ) from error


def static_folder(location: str) -> str:
    """Return a folder, the folder of a file, or the one above the first wildcard or brace."""
    whole = normal_location(location)
    kind = Storage(whole).info().type
    if kind == fs.FileType.Directory:
        return whole
    fixed = whole if kind == fs.FileType.File else _BEFORE_WILD.split(whole, maxsplit=1)[0]
    return fixed.rpartition("/")[0] or "/"


def is_folder(location: str) -> bool:
    """Whether a folder of exactly this name exists."""
    return Storage(location).info().type == fs.FileType.Directory


def dataset_name(location: str, suffix: str) -> str:
    """Name of a dataset made from `location`: its last part without wildcards."""
    fixed = _BEFORE_WILD.split(location, maxsplit=1)[0]
    return PurePosixPath(fixed.rstrip("/")).name.removesuffix(suffix).rstrip("-_.") or suffix[1:]


def names_below(files: list[FoundFile], suffix: str) -> list[str]:
    """Return a unique name for each file, without `suffix` and with folders only if needed."""
    folders = [file.location.split("/")[:-1] for file in files]
    common = os.path.commonprefix(folders)  # noqa: RUF071 - of lists, name by name
    start = len("/".join(common)) + 1
    return [file.location[start:].removesuffix(suffix) for file in files]


def listing_digest(files: list[FoundFile]) -> str:
    """SHA-256 of file names, sizes and times: identifies an input's state without reading it."""
    lines = [f"{PurePosixPath(f.location).name} {f.size} {f.time_ns}" for f in files]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _require_few(count: int, pattern: str) -> None:
    if count > _MAX_EXPANDED:
        raise InputError(f"{pattern} names more than {_MAX_EXPANDED:,} files; name a folder.")


def _at(whole: str) -> list[FoundFile] | None:
    """Return the file, or the files of the folder, of exactly this name; None if there is none."""
    info = Storage(whole).info()
    if info.type == fs.FileType.Directory:
        return _listed(Storage(whole), recursive=True)
    return [_found(whole, info)] if info.type == fs.FileType.File else None


def _named(patterns: list[str]) -> list[FoundFile]:
    """Return the files of exactly these names; all must exist."""
    folders: dict[str, list[str]] = {}
    for pattern in patterns:
        folder, _, name = pattern.rpartition("/")
        folders.setdefault(folder, []).append(name)
    files: list[FoundFile] = []
    for folder, names in folders.items():
        if len(names) > _LISTED_AT_ONCE:
            listed = _listed(Storage(folder), recursive=False)
        else:
            listed = [file for name in names for file in _at(f"{folder}/{name}") or ()]
        by_location = {file.location: file for file in listed}
        for name in names:
            file = by_location.get(f"{folder}/{name}")
            if file is None:
                raise InputError(f"there is no {name} in {folder}, which the input names.")
            files.append(file)
    return files


def _matching(pattern: str) -> list[FoundFile]:
    root = static_folder(pattern)
    below = pattern.removeprefix(root).lstrip("/")
    matches = re.compile(_regex(below)).fullmatch
    start = len(root.rstrip("/")) + 1
    listed = _listed(Storage(root), recursive="/" in below or "**" in below)
    return [file for file in listed if matches(file.location[start:])]


def _regex(pattern: str) -> str:
    """Convert a glob to a regular expression; `**` alone stands for any number of folders."""
    folders = [
        "(?:[^/]+/)*" if part == "**" else "".join(map(_token, _TOKENS.split(part))) + "/"
        for part in pattern.split("/")
    ]
    return "".join(folders).removesuffix("/")


def _token(token: str) -> str:
    if token.startswith(("*", "?")):
        return "[^/]*" if token.startswith("*") else "[^/]"
    if token.startswith("[") and token.endswith("]"):
        return token.replace("[!", "[^", 1)
    return re.escape(token)


def _listed(storage: Storage, *, recursive: bool) -> list[FoundFile]:
    if storage.is_remote:
        root = storage.path()
        files = [
            _found(storage.location + info.path.removeprefix(root), info)
            for info in storage.infos(recursive=recursive)
            if info.type == fs.FileType.File
        ]
    else:
        files = list(_walked(storage.location, recursive=recursive))
    return sorted(files, key=lambda file: file.location)


def _found(location: str, info: fs.FileInfo) -> FoundFile:
    return FoundFile(location, info.size or 0, info.mtime_ns or 0)


def _walked(folder: str, *, recursive: bool) -> Iterator[FoundFile]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed: {error.strerror}.") from error

    if not recursive and not os.path.isdir(folder):
        return
    for parent, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = os.path.join(parent, name)
            try:
                info = os.stat(path)
            except OSError:  # a dangling link, which is reported missing when used
                yield FoundFile(path, 0, 0)
            else:
                if stat.S_ISREG(info.st_mode):
                    yield FoundFile(path, info.st_size, info.st_mtime_ns)
        if not recursive:
            return
