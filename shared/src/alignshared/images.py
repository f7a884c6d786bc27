"""Decode image bytes to RGB as a viewer shows them, or give the reason for rejecting them.

Curation, training and chat share this code.

It differs from open_clip's transform only where Pillow's plain conversion would damage the image:
EXIF rotation is applied, transparent pixels are laid over white, 16-bit grey is scaled to 8 bits,
and palette and CMYK images become RGB before resizing instead of after. RGB and grey images give
bit-identical pixels.
"""

import base64
import io
import struct
import warnings
import zlib
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from alignshared.rejects import Reason

MAX_PIXELS = 89_478_485
"""Pillow's own decompression bomb limit; checked before decoding."""

MAX_ASPECT_RATIO = 200
"""Maximum ratio of longer to shorter side. Resizing the shorter side to, say, 336 pixels would turn
1 x 100,000 pixels into 11 billion.
"""

THUMBNAIL_SIDE = 160
"""Longest side of a thumbnail in pixels; larger than displayed, for dense screens."""

_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM",
    "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""Accepted image formats. EPS is excluded: it is a program, and Pillow would run Ghostscript."""

# Pillow repairs what it warns about (damaged EXIF), or it is rejected below; a line for
# each such image of a million is useless.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# Errors of Pillow's decoders on damaged files, from its own fuzzing targets.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
    UserWarning,  # if the caller turns warnings into errors
)


class ImageError(Exception):
    """An unusable image: the reject reason and a detail for the reader."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an encoded image to RGB; the first frame of an animation.

    Raises:
        ImageError: the bytes are empty, not an image, damaged, of more than `max_pixels` or
            MAX_PIXELS pixels, or longer than MAX_ASPECT_RATIO times its width.
    """
    return decode_sized(data, max_pixels=max_pixels)[0]


def decode_sized(
    data: bytes, shorter_side: int | None = None, *, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode like `decode_image`; also return the full width and height as displayed.

    With `shorter_side`, a JPEG may be decoded at 1/2, 1/4 or 1/8 scale as long as its shorter side
    keeps that many pixels (Pillow's `Image.draft`): faster, with slightly different pixels than
    resizing.

    Raises:
        ImageError: as `decode_image` does.
    """
    if not data:
        raise ImageError(Reason.EMPTY_FILE, "the file has no bytes")
    image = _open(data)
    full = image.size
    _check_size(*full, max_pixels)
    try:
        if shorter_side is not None and image.format == "JPEG":
            image.draft(None, (shorter_side, shorter_side))
        reduced = image.size != full
        image.load()
        _check_size(*image.size, max_pixels)  # an icon's size is only known now
        upright = to_rgb(image)
        if not reduced:
            return upright, upright.size
        with suppress(*_DECODE_ERRORS):
            if _orientation(image) in (5, 6, 7, 8):  # turned by a quarter, which swaps the sides
                return upright, (full[1], full[0])
        return upright, full
    except _BOMBS as error:
        raise ImageError(Reason.TOO_MANY_PIXELS, str(error)) from error
    except _DECODE_ERRORS as error:
        raise ImageError(Reason.CORRUPT_IMAGE, f"{type(error).__name__}: {error}") from error


def image_format(data: bytes) -> str | None:
    """Pillow's name of the image format, from the leading bytes; None if unknown."""
    try:
        with _open(data) as image:
            return image.format
    except ImageError:
        return None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    most = min(max_pixels, MAX_PIXELS)
    if width < 1 or height < 1:
        raise ImageError(Reason.CORRUPT_IMAGE, f"{width} x {height} pixels")
    if width * height > most:
        raise ImageError(
            Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels, the limit is {most:,}"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            Reason.TOO_MANY_PIXELS,
            f"{width} x {height} pixels: too many once its shorter side is resized for the model, "
            f"the limit is {MAX_ASPECT_RATIO} to 1",
        )


@cache
def _formats() -> list[str]:
    Image.init()  # without a format's plug-in, all its files would look corrupt
    return [name for name in _FORMATS if name in Image.OPEN]


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise ImageError(Reason.NOT_AN_IMAGE, "in no image format that is read here") from error
    except _BOMBS as error:
        raise ImageError(Reason.TOO_MANY_PIXELS, str(error)) from error
    except _DECODE_ERRORS as error:
        raise ImageError(Reason.CORRUPT_IMAGE, f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` upright and in RGB, as the module docstring describes."""
    with suppress(*_DECODE_ERRORS):  # a damaged EXIF block is harmless
        if _orientation(image) != 1:  # avoids a copy
            image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64) // 257
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def thumbnail(data: bytes, longest_side: int = THUMBNAIL_SIDE) -> Image.Image | None:
    """Return the image as CLIP sees it, at most `longest_side` pixels; None if undecodable."""
    try:
        image = decode_image(data)
    except ImageError:
        return None
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image


def data_uri(image: Image.Image) -> str:
    """Return `image`, RGB, as a data URI: JPEG, or PNG if smaller."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    # Pillow keeps the file's EXIF and colour profile, which may be large or private.
    bare = Image.frombytes("RGB", image.size, image.tobytes())
    bare.save(jpeg, "JPEG", quality=82, optimize=True)
    bare.save(png, "PNG", optimize=True)
    kind, data = min(("jpeg", jpeg), ("png", png), key=lambda pair: pair[1].tell())
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
