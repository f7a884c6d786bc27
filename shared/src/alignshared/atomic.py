"""Files and folders that appear under their names whole or not at all, power cuts included.

Each is written under a temporary name beside its final one, flushed to the disk, and renamed; the
folder that holds it is flushed after that.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".unfinished-"
"""What temporary names begin with."""


def write(path: Path, content: str | bytes) -> None:
    """Write `content` to the file `path`; text as UTF-8, its line ends as they are."""
    with file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def file(path: Path, *, shared: bool = False, durable: bool = True) -> Iterator[Path]:
    """Path of a temporary file, which becomes the file `path` when the block succeeds.

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
        with suppress(OSError):  # not even made, or the disk is gone: `raise` tells of it
            unfinished.unlink()
        raise
    if durable:
        flush(path.parent)


@contextmanager
def folder(path: Path, *, replace: bool = False, shared: bool = False) -> Iterator[Path]:
    """Path of a temporary folder, which becomes the folder `path` when the block succeeds.

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
    """Where the file or folder `path` is written; another place each time if `shared`."""
    ending = f"-{secrets.token_hex(4)}" if shared else ""
    return path.with_name(f"{UNFINISHED}{path.name}{ending}")


def flush(path: Path) -> None:
    """Wait until the file `path`, or the list of names in the folder `path`, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(handle)
