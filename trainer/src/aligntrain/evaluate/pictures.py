"""The pictures of a benchmark's row, in whatever form its table holds them."""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from alignshared import InputError
from alignshared.pictures import ImageError, decode_image, to_rgb

_LONGEST_REFERENCE = 64
"""No picture in base64 is as short; MMBench's own files name another row's `index` instead."""


class Elsewhere:
    """Pictures of other rows: `rows[place[key]]` has that of a row whose `column` is `key`."""

    def __init__(self, rows: Any, place: Mapping[Any, int], column: str) -> None:
        self._rows = rows
        self._place = place
        self._column = column

    def picture(self, row: Mapping[str, Any]) -> Any:
        """The cell that holds the picture of `row`.

        Raises:
            InputError: no row has it.
        """
        key = row[self._column]
        place = self._place.get(str(key))
        if place is None:
            raise InputError(f"no row holds the picture {key}; get the whole benchmark anew.")
        return self._rows[place]["image"]


def pictures_of(row: Mapping[str, Any], elsewhere: Elsewhere | None = None) -> list[Image.Image]:
    """The pictures of `row`, in RGB; from `elsewhere` where it has none itself.

    Raises:
        InputError: one cannot be read.
    """
    cell = row.get("image")
    missing = cell is None or (isinstance(cell, str) and len(cell) <= _LONGEST_REFERENCE)
    if elsewhere is not None and missing:
        cell = elsewhere.picture(row)
    cells = cell if isinstance(cell, list) else [cell]
    try:
        return [_picture(one) for one in cells]
    except (ImageError, OSError, binascii.Error, TypeError) as error:
        raise InputError(
            f"a picture of the benchmark cannot be read ({error}); get that file anew."
        ) from error


def _picture(cell: Any) -> Image.Image:
    if isinstance(cell, Image.Image):
        return to_rgb(cell)
    if isinstance(cell, str):
        return decode_image(base64.b64decode(cell, validate=True))
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") else Path(cell["path"]).read_bytes()
    return decode_image(cell)
