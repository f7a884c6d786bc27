"""Atomic writes of files and folders, safe against power cuts.

Each is written under a temporary name beside its final one, flushed to disk and renamed; then the
parent folder is flushed.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Prefix of temporary names."""


def write(path: Path, content: str | bytes) -> None:
    """Write `content` to the file `path`; text as UTF-8, line endings unchanged."""
    with file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def file(path: Path, *, shared: bool = False, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file, renamed to `path` when the block succeeds.

    Args:
        path: any file there is replaced.
        shared: several processes may write it at the same time; the last to finish wins.
        durable: flush to the disk, which takes milliseconds.
    """
    unfinished = temporary_name(path, shared=shared)
    try:
        yield unfinished
        if durable:
            flush(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):  # never created, or the disk is gone: `raise` reports it
            unfinished.unlink()
        raise
    if durable:
        flush(path.parent)


@contextmanager
def folder(path: Path, *, replace: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary folder, renamed to `path` when the block succeeds.

    Args:
        path: an empty folder there is replaced, any other only with `replace`.
        replace: remove what is at `path` just before the temporary folder takes its name.
        shared: several processes may write it at the same time.

    Raises:
        OSError: `path` is not empty.
    """
    unfinished = temporary_name(path, shared=shared)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for inside, _, files in os.walk(unfinished, topdown=False):
            for name in files:
                flush(Path(inside, name))
            flush(Path(inside))
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        os.rename(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    flush(path.parent)


def temporary_name(path: Path, *, shared: bool = False) -> Path:
    """Temporary path for the file or folder `path`; unique if `shared`."""
    ending = f"-{secrets.token_hex(4)}" if shared else ""
    return path.with_name(f"{UNFINISHED}{path.name}{ending}")


def flush(path: Path) -> None:
    """Sync the file `path`, or the entries of the folder `path`, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # unsupported by some file systems
            raise
    finally:
        os.close(handle)
