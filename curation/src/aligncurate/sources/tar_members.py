"""The members of a tar, without unpacking any: names and where their content lies.

Nothing in a tar is believed. Headers are read through a window that refuses large ones, sizes are
held against the file's, and where Python's tarfile ends in silence at a damaged header, here the
damage is told.
"""

import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

from alignshared import InputError

_MAX_HEADER = 1 << 20
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, LookupError)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_END_MARK = bytes(tarfile.BLOCKSIZE)


class TarDamage(Exception):
    """The tar cannot be read further; the message is a clause that says where and why."""


class TarBytes:
    """A tar's bytes, read in windows of `window` bytes: far fewer requests than headers."""

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
        """The next `count` bytes, fewer at the end; raises TarDamage where no header is as long."""
        if not 0 <= count <= _MAX_HEADER:
            raise TarDamage(f"the header at byte {self._at:,} claims to have {count:,} bytes")
        data = self.at(self._at, count)
        self._at += len(data)
        return data

    def at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer at the end."""
        begin = position - self._held_at
        if not 0 <= begin <= begin + count <= len(self._held) and position < self.size:
            wanted = min(max(count, self._window), self.size - position)
            self._held = self._stream.read_at(wanted, position)
            self._held_at, begin = position, 0
        return self._held[begin : begin + count] if begin >= 0 else b""


def tar_members(data: TarBytes, location: str) -> Iterator[tarfile.TarInfo]:
    """The members of the tar, in order, as their headers describe them.

    Raises:
        InputError: the tar is compressed.
        TarDamage: it is cut short or damaged; all members before have been given.
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
