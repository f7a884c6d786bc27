"""Names and values valid in any file system, tar or JSON reader.

Ids may be paths, differ only in case, or exceed file name limits, so files are named after row
numbers and the id is in the record.
"""

import json
import math
from typing import Any

from alignshared.images import image_format

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
    """File name of row `number`, without suffix."""
    return f"{number:09d}"


def image_suffix(data: bytes) -> str:
    """Suffix for the format of the bytes, whatever the original name."""
    kind = image_format(data)
    return _UNKNOWN if kind is None else _SUFFIXES.get(kind, kind.lower())


def json_line(value: Any) -> bytes:
    """Return `value` as one line of JSON: NaN and infinities become null, dates and others text."""
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
