"""Picture files under a root that their paths may not leave."""

import os
from pathlib import Path

from alignshared import InputError, Reason
from alignshared.pictures import ImageError

MAX_FILE_BYTES = 1 << 28
"""256 MiB: more than a picture of the most pixels takes, so nothing larger need be read."""


def picture_root(image_root: str | None) -> Path | None:
    """The folder `image_root`, if one is given.

    Raises:
        InputError: it is no folder.
    """
    if image_root is not None and not Path(image_root).is_dir():
        raise InputError(f"--image-root {image_root} is no folder; name the one with the pictures.")
    return None if image_root is None else Path(image_root)


def read_picture(root: str | None, path: str) -> bytes:
    """The bytes of the picture file `path`, relative to `root`.

    Raises:
        ImageError: the path leaves the root (by `..`, by being absolute elsewhere, through a link),
            or there is no readable file.
    """
    if root is None:
        raise ImageError(Reason.MISSING_FILE, "the row holds a path and there is no image root")
    real_root = os.path.realpath(root)
    try:
        full = os.path.realpath(os.path.join(real_root, path))
        if os.path.commonpath([real_root, full]) != real_root:
            raise ImageError(Reason.PATH_OUTSIDE_ROOT, f"leads out of {root}")
        if not os.path.isfile(full) and os.path.exists(full):  # opening a pipe would wait for ever
            raise ImageError(Reason.MISSING_FILE, f"is no file under {root}")
        if (size := os.path.getsize(full)) > MAX_FILE_BYTES:
            raise ImageError(Reason.TOO_MANY_PIXELS, f"{size:,} bytes, more than any picture has")
        with open(full, "rb") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise ImageError(Reason.MISSING_FILE, f"no such file under {root}") from error
    except (OSError, ValueError) as error:  # a folder, no permission, a NUL byte in the name
        raise ImageError(Reason.MISSING_FILE, f"{type(error).__name__}: {error}") from error
