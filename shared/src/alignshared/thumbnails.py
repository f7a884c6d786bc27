"""Thumbnails, re-encoded from pixels so that no metadata of the file is passed on."""

import base64
import io

from PIL import Image

from alignshared.images import ImageError, decode_image

LONGEST_SIDE = 160
"""Pixels; larger than displayed, for dense screens."""

_JPEG_QUALITY = 82


def thumbnail(data: bytes, longest_side: int = LONGEST_SIDE) -> Image.Image | None:
    """Return the image as CLIP sees it, at most `longest_side` pixels; None if it cannot be
    decoded.
    """
    try:
        picture = decode_image(data)
    except ImageError:
        return None
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image) -> str:
    """Return `picture`, RGB, as a data URI: JPEG, or PNG if smaller."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    # Pillow keeps the file's EXIF and colour profile, which may be large or private.
    bare = Image.frombytes("RGB", picture.size, picture.tobytes())
    bare.save(jpeg, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    bare.save(png, "PNG", optimize=True)
    kind, data = min(("jpeg", jpeg), ("png", png), key=lambda pair: pair[1].tell())
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
