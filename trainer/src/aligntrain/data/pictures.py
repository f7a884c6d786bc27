"""From the bytes of a picture to the RGB image that a viewer shows.

Training must see what curation scored: the EXIF rotation is applied, transparent pixels lie over
white, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken.
"""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

from aligntrain.data.unusable import Unusable, Why

# What Pillow's decoders raise on damaged files.
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
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode_picture(data: bytes) -> Image.Image:
    """The encoded picture `data` as an RGB image.

    Raises:
        Unusable: the bytes are no picture, damaged, or of more pixels than Pillow takes for safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, which nobody reads here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            image.load()
            return _to_rgb(upright(image))
    except _DECODE_ERRORS as error:
        raise Unusable(Why.CORRUPT_IMAGE, f"{type(error).__name__}: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF block says; damage there does not make a picture unusable."""
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
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
