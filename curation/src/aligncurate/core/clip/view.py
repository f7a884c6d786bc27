"""What of an image the model sees: open_clip's own resizing and cropping, kept as 8-bit pixels.

open_clip's transform ends in two steps that turn pixels into normalised floats. Those run once per
batch on the model's device instead, with the same arithmetic, so an image travels at a quarter of
the bytes.
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
    """open_clip's image preprocessing configuration `preprocess`, changed to frame as `view`."""
    if view == "crop":
        return preprocess | {"resize_mode": "shortest"}
    mean = tuple(int(255 * channel) for channel in preprocess["mean"])
    return preprocess | {"resize_mode": "longest", "fill_color": mean}


def pixel_view(preprocess: dict[str, Any]) -> PixelView:
    """The function from an RGB image to its pixels [H, W, 3] uint8 as open_clip's `preprocess`
    frames it.
    """
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
    """`image`, made thicker if its shorter side would be resized to less than a pixel."""
    thinnest = -(-max(image.size) // size)
    if min(image.size) >= thinnest:
        return image
    return image.resize((max(image.width, thinnest), max(image.height, thinnest)))
