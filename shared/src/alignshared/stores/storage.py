"""A folder, on disk or in an object store, addressed by relative POSIX paths.

Readers never see partial files. On disk a file is written under a temporary name and renamed when
complete. Object stores cannot rename, and pyarrow cannot abort an upload: closing it, even after an
error, publishes what was sent so far. Files for an object store are therefore written to a local
temporary file and uploaded once complete.

Access goes through pyarrow file systems; `storage_options` holds the connection settings.
"""

import errno
import hashlib
import io
import json
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
from pyarrow import fs

from alignshared import atomic
from alignshared.errors import AlignError, InputError, one_line
from alignshared.stores.filesystems import is_remote, normal_location, open_filesystem
from alignshared.stores.options import current_storage_options

_OLD_TEMPORARY = ".tmp"  # of runs that an older version began


class HashingSink(io.RawIOBase):
    """A binary file that counts and hashes (SHA-256) everything written to it."""

    def __init__(self, raw: pa.NativeFile | IO[bytes], location: str) -> None:
        self._raw = raw
        self._location = location
        self._sha256 = hashlib.sha256()
        self.bytes_written = 0

    def write(self, data: Any) -> int:
        self._sha256.update(data)
        try:
            self._raw.write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise AlignError(
                f"the disk is full at {self._location}; free some space there and run the same "
                "command again to go on."
            ) from error
        self.bytes_written += len(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes_written

    def writable(self) -> bool:
        return True

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the bytes written so far."""
        return self._sha256.hexdigest()


class Storage:
    """A folder at `location`: a local path or a URI such as `s3://bucket/prefix`.

    It keeps the storage options in force at its creation, also when sent to another process.

    Raises:
        InputError: the URI carries options or credentials, or names no bucket.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = normal_location(location)
        self._options = current_storage_options()

    def __repr__(self) -> str:
        return f"Storage({self.location!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "_options": self._options}

    @cached_property
    def _filesystem_and_root(self) -> tuple[fs.FileSystem, str]:
        return open_filesystem(self.location, self._options)

    @property
    def is_remote(self) -> bool:
        """Whether this is in an object store."""
        return is_remote(self.location)

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system that `path` speaks to."""
        return self._filesystem_and_root[0]

    def path(self, name: str = "") -> str:
        """Path of `name` in the file system.

        Raises:
            InputError: `name` is absolute or leaves the folder.
        """
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise InputError(f"{name!r} leaves the folder {self.location}; use a path inside it.")
        root = self._filesystem_and_root[1]
        return f"{root}/{pure}" if name else root

    def child(self, name: str) -> "Storage":
        """The folder `name` inside this one."""
        self.path(name)
        child = Storage(f"{self.location.rstrip('/')}/{name}")
        child._options = self._options
        return child

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; empty when there is no folder.

        Raises:
            InputError: it is a file.
        """
        return sorted(info.base_name for info in self.infos())

    def infos(self, *, recursive: bool = False) -> list[fs.FileInfo]:
        """The files and folders directly inside, or, if `recursive`, at any depth, in no order.

        Raises:
            InputError: it is a file, or the store does not respond.
        """
        selector = fs.FileSelector(self.path(), allow_not_found=True, recursive=recursive)
        try:
            return self.filesystem.get_file_info(selector)
        except NotADirectoryError as error:
            raise InputError(f"{self.location} is a file; name a folder.") from error
        except OSError as error:
            raise self._unreachable(error) from error

    def info(self, name: str = "") -> fs.FileInfo:
        """Type, size and time of the file or folder `name`, or of this folder itself.

        Raises:
            InputError: the store does not respond.
        """
        path = self.path(name)
        try:
            return self.filesystem.get_file_info(path)
        except OSError as error:
            raise self._unreachable(error) from error

    def exists(self, name: str) -> bool:
        """Whether a file or folder `name` is there."""
        return self.info(name).type != fs.FileType.NotFound

    def open(self, name: str) -> pa.NativeFile:
        """Open `name` for reading at any position.

        Raises:
            InputError: the file is missing or unreadable.
        """
        try:
            return self.filesystem.open_input_file(self.path(name))
        except FileNotFoundError as error:
            raise InputError(f"there is no {name} in {self.location}.") from error
        except OSError as error:
            raise InputError(
                f"{name} in {self.location} cannot be read: {one_line(error)}."
            ) from error

    def read_bytes(self, name: str) -> bytes:
        """The whole content of the file `name`."""
        with self.open(name) as stream:
            return stream.read()

    @contextmanager
    def writing(self, name: str, *, durable: bool = True) -> Iterator[HashingSink]:
        """Write `name` atomically: it appears only when the block succeeds.

        On disk it is flushed before it appears, unless it need not be `durable`.

        Raises:
            InputError: the folder is not writable.
            AlignError: the disk is full.
        """
        if self.location.startswith("hf://"):
            raise InputError(
                f"{self.location} can only be read; write to a folder or to an object store."
            )
        final = self.path(name)
        with self._sending(final) if self.is_remote else self._renaming(final, durable) as sink:
            yield sink

    @contextmanager
    def _renaming(self, final: str, durable: bool) -> Iterator[HashingSink]:
        # Shared: an abandoned writer may still be writing the same file.
        with atomic.file(Path(final), shared=True, durable=durable) as unfinished:
            try:
                self.filesystem.create_dir(os.path.dirname(final), recursive=True)
                raw = self.filesystem.open_output_stream(os.fspath(unfinished))
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                raise InputError(f"{self.location} cannot be written to: {error}.") from error
            try:
                yield HashingSink(raw, self.location)
            finally:
                raw.close()

    @contextmanager
    def _sending(self, final: str) -> Iterator[HashingSink]:
        with tempfile.TemporaryFile() as gathered:
            sink = HashingSink(gathered, tempfile.gettempdir())
            yield sink
            gathered.flush()
            with self.filesystem.open_output_stream(final) as stream:
                if sink.bytes_written:  # one call, so that nothing comes in between
                    with mmap.mmap(gathered.fileno(), 0, access=mmap.ACCESS_READ) as content:
                        stream.write(content)

    def sweep(self) -> None:
        """Delete the temporary files of killed writers, at any depth."""
        if self.is_remote:  # partial objects never get a name
            return
        root = self.path()
        for info in self.infos(recursive=True):
            name: str = info.base_name
            if name.startswith(atomic.UNFINISHED) or name.endswith(_OLD_TEMPORARY):
                self.delete(os.path.relpath(info.path, root))

    def _unreachable(self, error: OSError) -> InputError:
        return InputError(f"{self.location} cannot be reached: {one_line(error)}.")

    def write_bytes(self, name: str, data: bytes, *, durable: bool = True) -> str:
        """Write `data` atomically as the file `name`; return its SHA-256."""
        with self.writing(name, durable=durable) as sink:
            sink.write(data)
        return sink.sha256

    def write_json(self, name: str, data: Any) -> str:
        """Write `data` as indented JSON; return the file's SHA-256."""
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        return self.write_bytes(name, text.encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """The parsed JSON file `name`.

        Raises:
            InputError: the file is missing or not JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise InputError(f"{name} in {self.location} is not JSON: {error}.") from error

    def delete(self, name: str) -> None:
        """Delete the file or folder `name`, if it exists."""
        path = self.path(name)
        kind = self.filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(path)
