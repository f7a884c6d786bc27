"""Pictures look to the model as they look to a viewer, and damaged ones are told apart."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from alignshared import Reason
from alignshared.images import MAX_ASPECT_RATIO, MAX_PIXELS, ImageError, decode_image
from tests.curation import pictures


def pixels(data: bytes) -> npt.NDArray[np.int16]:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int16)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_rgb_and_grey_are_what_pillow_decodes_to_the_bit(kind: str, mode: str):
    data = pictures.encoded(pictures.noise(7).convert(mode), kind)
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (pixels(data) == plain).all()


def test_exif_rotation_is_applied():
    upright = decode_image(pictures.rotated_jpeg())
    assert upright.size == (60, 90)
    turned = np.asarray(pictures.noise(2).transpose(Image.Transpose.ROTATE_270))
    assert np.abs(np.asarray(upright).astype(int) - turned).mean() < 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")  # as for users
def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = pictures.encoded(pictures.noise(2), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(data).size == (90, 60)


def test_cmyk_keeps_its_colours():
    difference = np.abs(pixels(pictures.cmyk_jpeg()) - np.asarray(pictures.noise(3)))
    assert difference.mean() < 4


def test_16_bits_are_scaled_and_not_cut_off():
    ramp = pixels(pictures.grey_16_bit_png())
    assert (ramp.min(), ramp.max()) == (0, 255)
    assert abs(ramp.mean() - 127.5) < 1


def test_a_palette_keeps_its_colours():
    assert np.abs(pixels(pictures.palette_png()) - np.asarray(pictures.noise(4))).mean() < 12


def test_transparent_pixels_lie_over_white():
    shown = pixels(pictures.transparent_png())
    assert shown[30, 10].tolist() == [255, 0, 0]
    assert shown[30, 80].tolist() == [255, 255, 255]


def test_a_palette_with_a_transparent_colour_lies_over_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    shown = pixels(pictures.encoded(image, transparency=0))
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert shown[5, 5].tolist() == [10, 20, 30]


def test_an_animation_is_its_first_frame():
    assert pixels(pictures.animated_gif())[30, 30].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY_FILE),
        (b"not a picture", Reason.NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.NOT_AN_IMAGE),
        (pictures.truncated_jpeg(), Reason.CORRUPT_IMAGE),
        (pictures.photo()[:-2], Reason.CORRUPT_IMAGE),
        (pictures.encoded(pictures.noise(1))[:900], Reason.CORRUPT_IMAGE),
        (pictures.png_that_claims(0, 10), Reason.NOT_AN_IMAGE),
        (pictures.png_that_claims(10, 10), Reason.CORRUPT_IMAGE),
        (pictures.png_that_claims(30_000, 30_000), Reason.TOO_MANY_PIXELS),
        (pictures.png_that_claims(9_459, 9_460), Reason.TOO_MANY_PIXELS),
        (pictures.png_that_claims(9_459, 9_459), Reason.CORRUPT_IMAGE),
        (pictures.encoded(Image.new("L", (3 * MAX_ASPECT_RATIO, 3))), None),
        (pictures.encoded(Image.new("L", (2, 2 * MAX_ASPECT_RATIO + 1))), Reason.TOO_MANY_PIXELS),
    ],
)
def test_what_cannot_be_used_says_why(data: bytes, reason: Reason | None):
    if reason is None:
        decode_image(data)
        return
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason is reason
    assert caught.value.detail
    assert "\n" not in caught.value.detail


def test_the_pixel_limit_lies_between_the_two_sizes_above():
    assert 9_459 * 9_459 <= MAX_PIXELS < 9_459 * 9_460


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "ICO"])
def test_damage_anywhere_gives_a_picture_or_a_reason_and_no_crash(kind: str):
    whole = bytearray(pictures.encoded(pictures.noise(5, (64, 64)), kind))
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = whole.copy()
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(0, 256)
        try:
            decode_image(bytes(data[: rng.integers(1, len(data) + 1)]))
        except ImageError as error:
            assert error.reason in set(Reason) - {Reason.EMPTY_FILE}
