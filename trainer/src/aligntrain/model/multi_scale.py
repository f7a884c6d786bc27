"""Features of a picture at several scales, from a tower that reads one size: S2.

Shi et al. 2024, "When Do We Not Need Larger Vision Models?" (arXiv 2403.13043, section 3.1): the
picture is resized to each scale and cut into tiles of the tower's own size; the features of the
tiles are put together to the whole picture's, averaged over areas down to the grid of one tile, and
those of all scales stand side by side as channels. So a picture takes as many tokens as before,
each of them wider.

The largest picture comes from the processor, the smaller ones are made of it here, bicubic with
antialiasing, as Pillow makes the pictures that the towers were trained on. S2's published code
samples without antialiasing, which keeps every third pixel of 1008 for 336.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

import torch
from torch.nn import functional

from alignshared import InputError

Read = Callable[[torch.Tensor], torch.Tensor]
"""A tower: features [n, L, width] of tiles [n, 3, tile, tile]."""


def check_scales(scales: Sequence[int], size: Any, select: str) -> None:
    """Raise InputError unless a tower that reads pictures of `size` can make `scales` of them."""
    if not isinstance(size, int):
        raise InputError(f"vision_scales need a tower for squares, not {size}; leave them out.")
    ascending = list(scales) == sorted(set(scales))
    if not scales or not ascending or any(scale < size or scale % size for scale in scales):
        raise InputError(
            f"vision_scales are {list(scales)}; give multiples of the vision tower's {size} pixels "
            f"in ascending order, as in [{size}, {2 * size}, {3 * size}]."
        )
    if scales[-1] > size and select != "patch":
        raise InputError(
            f"vision_scales {list(scales)} go with the patch tokens alone, as a class token has no "
            "place in the picture; set vision_feature_select to patch."
        )


def tiles_of(scales: Sequence[int], size: int) -> int:
    """How many pictures of `size` a tower reads for one: those of all `scales`."""
    return sum((scale // size) ** 2 for scale in scales)


def tower_bytes(config: Any, images: int, size: int) -> int:
    """Bytes that reading `images` pictures takes at its peak, in values of `size` bytes.

    `config` is an AlignGPTConfig. Counted are the pictures, in float32 too, every hidden state of
    the tower and one layer's inner ones for the tiles read at once, and the features.
    """
    vision = config.vision_config
    height, width = config.image_size
    tokens = config.image_tokens + int(config.has_class_token)
    at_once = images * (config.scales[-1] // vision.image_size if config.scales else 1)
    states = (vision.num_hidden_layers + 5) * vision.hidden_size + 2 * vision.intermediate_size
    return (
        images * 3 * height * width * (4 + size)
        + at_once * tokens * states * size
        + images * config.image_tokens * config.feature_width * size
    )


def multi_scale(
    pixel_values: torch.Tensor, scales: Sequence[int], tile: int, read: Read
) -> torch.Tensor:
    """Features [I, L, len(scales) * width] of pictures [I, 3, S, S], of which S is the last scale.

    `read` gets the tiles row by row, equally often whatever the number of pictures, so that ranks
    over which ZeRO-3 spreads the tower stay together.
    """
    features = [_pooled(_resized(pixel_values, scale), tile, read) for scale in scales]
    return features[0] if len(features) == 1 else torch.cat(features, dim=-1)


def _resized(pixel_values: torch.Tensor, scale: int) -> torch.Tensor:
    if pixel_values.shape[-1] == scale:
        return pixel_values
    smaller = functional.interpolate(
        pixel_values.float(), size=(scale, scale), mode="bicubic", antialias=True
    )
    return smaller.to(pixel_values.dtype)


def _pooled(pictures: torch.Tensor, tile: int, read: Read) -> torch.Tensor:
    """Features [I, L, width] of `pictures` [I, 3, n tile, n tile]."""
    count = pictures.shape[-1] // tile
    if count == 1:
        return read(pictures)
    rows = [_row(row, tile, read) for row in pictures.split(tile, dim=2)]
    whole = torch.cat(rows, dim=2)  # [I, width, n side, n side]
    side = whole.shape[-1] // count
    pooled = functional.interpolate(whole.float(), size=(side, side), mode="area")
    return pooled.to(whole.dtype).flatten(2).transpose(1, 2)


def _row(row: torch.Tensor, tile: int, read: Read) -> torch.Tensor:
    """Features [I, width, side, n side] of a row of tiles [I, 3, tile, n tile]."""
    tiles = row.split(tile, dim=3)
    features = read(torch.cat(tiles))
    side = isqrt(features.shape[1])
    grids = features.transpose(1, 2).unflatten(2, (side, side))
    return torch.cat(grids.chunk(len(tiles)), dim=3)
