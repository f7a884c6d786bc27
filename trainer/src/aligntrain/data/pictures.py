"""The pictures of a sample, decoded as curation decodes them."""

from PIL import Image

from alignshared.pictures import ImageError, decode_image
from aligntrain.prompts.unusable import Unusable, Why


def decode_picture(data: bytes) -> Image.Image:
    """The encoded picture `data` as an RGB image.

    Raises:
        Unusable: it cannot be used (see `alignshared.pictures.decode_image`).
    """
    try:
        return decode_image(data)
    except ImageError as error:
        raise Unusable(Why.CORRUPT_IMAGE, f"{error.reason.value}: {error.detail}") from error
