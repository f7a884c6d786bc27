"""Picture files under a root that their paths may not leave."""

import os

from aligncurate.core.images import ImageError
from alignshared import Reason


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
        with open(full, "rb") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise ImageError(Reason.MISSING_FILE, f"no such file under {root}") from error
    except (OSError, ValueError) as error:  # a folder, no permission, a NUL byte in the name
        raise ImageError(Reason.MISSING_FILE, f"{type(error).__name__}: {error}") from error
