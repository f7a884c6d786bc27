"""Pictures of every kind that is met in the wild, good and bad, as bytes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
"""The EXIF tag; 6 means that the camera was turned a quarter to the right."""


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """`image` as the bytes of a file of `kind`."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """A picture whose pixels are all different, so that a shift or a rotation shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def photo(seed: int = 0, size: tuple[int, int] = (90, 60)) -> bytes:
    """An ordinary JPEG."""
    return encoded(noise(seed, size), "JPEG", quality=90)


def truncated_jpeg() -> bytes:
    """A JPEG cut in the middle."""
    whole = photo(1, (400, 300))
    return whole[: len(whole) // 2]


def rotated_jpeg() -> bytes:
    """A JPEG of 90 x 60 that EXIF says to show as 60 x 90."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(noise(2), "JPEG", quality=95, exif=exif.tobytes())


def cmyk_jpeg() -> bytes:
    """A JPEG in printing colours."""
    return encoded(noise(3).convert("CMYK"), "JPEG", quality=95)


def grey_16_bit_png() -> bytes:
    """Grey in 16 bits: a ramp from black to white."""
    ramp = np.linspace(0, 65535, 90 * 60).astype(np.uint16).reshape(60, 90)
    return encoded(Image.fromarray(ramp))


def palette_png() -> bytes:
    """256 colours."""
    return encoded(noise(4).quantize(256))


def transparent_png() -> bytes:
    """Left half red, right half nothing: a viewer shows it white."""
    image = Image.new("RGBA", (90, 60), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 45, 60))
    return encoded(image)


def animated_gif() -> bytes:
    """Two frames: the first red, the second blue."""
    frames = [Image.new("RGB", (90, 60), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes whose header claims `width` x `height` pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
