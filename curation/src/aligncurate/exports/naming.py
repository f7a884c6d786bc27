"""Names and values that any file system, tar or JSON reader takes.

Ids come from anywhere and may be paths, differ in case only, or be longer than a file name, so no
file is named after one: it bears the row's number, and the id stands in the record.
"""

import json
import math
from typing import Any

from alignshared.images import picture_format

_SUFFIXES = {
    "AVIF": "avif",
    "BMP": "bmp",
    "DIB": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "JPEG2000": "jp2",
    "MPO": "jpg",
    "PNG": "png",
    "PPM": "ppm",
    "TIFF": "tif",
    "WEBP": "webp",
}
_UNKNOWN = "bin"


def row_name(number: int) -> str:
    """Name of the files of row `number`, without suffix."""
    return f"{number:09d}"


def image_suffix(data: bytes) -> str:
    """Suffix for the format of the bytes, whatever the file was called before."""
    kind = picture_format(data)
    return _UNKNOWN if kind is None else _SUFFIXES.get(kind, kind.lower())


def json_line(value: Any) -> bytes:
    """`value` as JSON on one line: NaN and infinities are null, dates and other values text."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)
    return text.encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value
