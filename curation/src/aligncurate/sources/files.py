"""Image and text files, local or remote, confined to a root folder."""

import errno
import os
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from alignshared import AlignError, InputError, Reason, Storage
from alignshared.errors import one_line
from alignshared.images import ImageError
from alignshared.stores.filesystems import is_remote, normal_location

MAX_FILE_BYTES = 1 << 28
"""256 MiB: more than the largest accepted image."""

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".ico", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tga", ".tif",
    ".tiff", ".webp",
)  # fmt: skip
"""Suffixes of image files; the format is checked on decoding."""

_OF_THE_DISK = frozenset(
    (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
)
"""Errors that may be transient."""


def resolve_image_root(image_root: str | None, default: str) -> str:
    """Return the folder `image_root`, or `default`, as a path without links or as a URI.

    Raises:
        InputError: `image_root` is not a folder.
    """
    root = normal_location(default if image_root is None else image_root)
    if image_root is not None and Storage(root).info().type != fs.FileType.Directory:
        raise InputError(f"--image-root {image_root} is no folder; name the one with the images.")
    return root if is_remote(root) else os.path.realpath(root)


def read_image(root: str | None, path: str) -> bytes:
    """Read the image file `path`, relative to `root`.

    Raises:
        ImageError: the path leaves the root (by `..`, by being absolute elsewhere, through a link),
            or the file is missing or unreadable.
        AlignError: the disk or the object store fails, which says nothing about the image.
    """
    if root is None:
        raise ImageError(Reason.MISSING_FILE, "the row holds a path and there is no image root")
    return read_file(root, path, MAX_FILE_BYTES)


def read_file(root: str, path: str, limit: int) -> bytes:
    """Read the file `path`, at most `limit` bytes; raises as `read_image` does."""
    return (_read_object if is_remote(root) else _read_local)(root, path, limit)


def _read_local(root: str, path: str, limit: int) -> bytes:
    real_root = os.path.realpath(root)
    try:
        full = os.path.realpath(os.path.join(real_root, _plain_path(path)))
        if os.path.commonpath([real_root, full]) != real_root:
            raise ImageError(Reason.PATH_OUTSIDE_ROOT, f"leads out of {root}")
        if not os.path.isfile(full) and os.path.exists(full):  # opening a pipe would block forever
            raise ImageError(Reason.MISSING_FILE, f"is no file under {root}")
        _require_size(os.path.getsize(full), limit)
        with open(full, "rb") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise ImageError(Reason.MISSING_FILE, f"no such file under {root}") from error
    except (OSError, ValueError) as error:  # a folder, no permission, a NUL byte in the name
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise AlignError(
                f"{path} under {root} cannot be read: {one_line(error)}; run the same command to "
                "go on."
            ) from error
        raise ImageError(Reason.MISSING_FILE, f"{type(error).__name__}: {error}") from error


def _read_object(root: str, path: str, limit: int) -> bytes:
    storage = Storage(root)
    pure = PurePosixPath(path.removeprefix(f"{root}/"))
    if pure.is_absolute() or ".." in pure.parts or is_remote(str(path).removeprefix(f"{root}/")):
        raise ImageError(Reason.PATH_OUTSIDE_ROOT, f"leads out of {root}")
    try:
        with storage.filesystem.open_input_file(storage.path(str(pure))) as stream:
            _require_size(stream.size(), limit)
            return stream.read()
    except (FileNotFoundError, ValueError) as error:
        raise ImageError(Reason.MISSING_FILE, f"no such file under {root}") from error
    except OSError as error:
        raise AlignError(
            f"{root}/{pure} cannot be read: {one_line(error)}; run the same command to resume."
        ) from error


def _plain_path(path: str) -> str:
    """Return `path`, converted from a `file://` URL if it is one; other URLs are not fetched."""
    if path.startswith("file://"):
        parts = urlsplit(path)
        if parts.netloc in ("", "localhost"):
            return unquote(parts.path)
    if is_remote(path):
        raise ImageError(
            Reason.PATH_OUTSIDE_ROOT, "is a URL, and nothing is downloaded; img2dataset does that"
        )
    return path


def _require_size(size: int, limit: int) -> None:
    if size > limit:
        raise ImageError(
            Reason.TOO_MANY_PIXELS if limit == MAX_FILE_BYTES else Reason.MALFORMED_RECORD,
            f"{size:,} bytes, more than any {'image' if limit == MAX_FILE_BYTES else 'text'} has",
        )
