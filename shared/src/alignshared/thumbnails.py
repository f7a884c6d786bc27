"""Small copies of pictures, made again from their pixels so that nothing else of the file is passed
on.
"""

import base64
import io

from PIL import Image

from alignshared.images import ImageError, decode_image

LONGEST_SIDE = 160
"""Pixels; more than the page shows them at, for dense screens."""

_JPEG_QUALITY = 82


def thumbnail(data: bytes, longest_side: int = LONGEST_SIDE) -> Image.Image | None:
    """The picture as CLIP was shown it, at most `longest_side` pixels; None if it cannot be
    decoded.
    """
    try:
        picture = decode_image(data)
    except ImageError:
        return None
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image) -> str:
    """`picture`, RGB, as a data URI: JPEG, or PNG where that is smaller."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    # A picture keeps the EXIF and colour profile of its file, which may be large or private.
    bare = Image.frombytes("RGB", picture.size, picture.tobytes())
    bare.save(jpeg, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    bare.save(png, "PNG", optimize=True)
    kind, data = min(("jpeg", jpeg), ("png", png), key=lambda pair: pair[1].tell())
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
