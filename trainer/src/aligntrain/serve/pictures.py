"""Pictures of a request: from data URLs or what was fetched to RGB, within limits."""

import base64
import binascii

from PIL import Image

from alignshared.pictures import ImageError, decode_image
from alignshared.rejects import Reason
from aligntrain.serve.refusals import Refusal


def is_data_url(url: str) -> bool:
    """Whether the picture is inside `url` itself."""
    return url[:5].lower() == "data:"


def from_data_url(url: str, place: str) -> bytes:
    """The bytes in the data URL `url`, which stands at `place` of the request.

    Raises:
        Refusal: it is no picture in base64.
    """
    head, comma, data = url.partition(",")
    kind, _, coding = head[5:].lower().partition(";")
    if not comma or coding.rpartition(";")[2].strip() != "base64":
        raise refused(place, "is no data URL in base64, as in data:image/png;base64,iVBOR…")
    if not kind.startswith("image/"):
        raise refused(place, f"is of type {kind[:80] or 'unknown'}, not of a picture's")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused(place, f"is no base64 ({error})") from error


def decode(data: bytes, pixels: int, place: str) -> Image.Image:
    """The picture in `data`, as training sees it, in RGB.

    Raises:
        Refusal: there is none, or it has more than `pixels`; found before they are decoded.
    """
    try:
        return decode_image(data, max_pixels=pixels)
    except ImageError as problem:
        if problem.reason == Reason.TOO_MANY_PIXELS:
            raise refused(place, f"is too large: {problem.detail}") from problem
        raise refused(
            place, f"holds no picture that can be read ({problem.reason.value}: {problem.detail})"
        ) from problem


def refused(place: str, why: str) -> Refusal:
    """That of the picture at `place`."""
    return Refusal(
        400, f"the picture at {place} {why.rstrip('.')}.", code="invalid_image", param=place
    )
