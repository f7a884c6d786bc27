"""The model's view of an image: open_clip's resizing and cropping, as 8-bit pixels.

The last two steps of open_clip's transform, conversion to floats and normalisation, run once per
batch on the model's device with the same arithmetic, so images are sent at a quarter of the
bytes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from aligncurate.settings import View

PixelView = Callable[[Image.Image], npt.NDArray[np.uint8]]


def preprocess_of_view(preprocess: dict[str, Any], view: View) -> dict[str, Any]:
    """Return open_clip's image preprocessing configuration `preprocess` with framing `view`."""
    if view == "crop":
        return preprocess | {"resize_mode": "shortest"}
    mean = tuple(int(255 * channel) for channel in preprocess["mean"])
    return preprocess | {"resize_mode": "longest", "fill_color": mean}


def pixel_view(preprocess: dict[str, Any]) -> PixelView:
    """Return a function from an RGB image to pixels [H, W, 3] uint8 by open_clip's `preprocess`."""
    transform = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
    steps: list[Any] = transform.transforms if isinstance(transform, Compose) else []
    ends = len(steps) > 1 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize)
    if not ends:
        raise RuntimeError(
            f"open_clip's transform no longer ends as this code expects: {transform}"
        )
    frame = Compose(steps[:-2])
    size = preprocess["size"]
    shortest = min(size) if isinstance(size, list | tuple) else size

    def view(image: Image.Image) -> npt.NDArray[np.uint8]:
        if preprocess.get("resize_mode") == "longest":
            image = _at_least_a_line(image, shortest)
        return np.array(frame(image))

    return view


def _at_least_a_line(image: Image.Image, size: int) -> Image.Image:
    """Thicken `image` if its shorter side would be resized to less than a pixel."""
    thinnest = -(-max(image.size) // size)
    if min(image.size) >= thinnest:
        return image
    return image.resize((max(image.width, thinnest), max(image.height, thinnest)))
