"""Image features: a CLIP or SigLIP tower read at one scale or several (S2), and the projector.

S2 (Shi et al. 2024, "When Do We Not Need Larger Vision Models?", arXiv 2403.13043, section 3.1)
reads an image at several scales with a tower of one size. The image is resized to each scale and
cut into tiles of the tower's size; the tiles' features are joined to a grid of the whole image and
averaged over areas down to the grid of one tile; the scales stand side by side as channels. An
image takes as many tokens as before, each of them wider.

The processor makes the image of the largest scale. Smaller ones are resized from it here, bicubic
with antialiasing, as Pillow does for the images that the towers were trained on. S2's published
code does not antialias, which keeps every third pixel of 1008 for 336.

Pixel shuffle (Shi et al. 2016, arXiv 1609.05158, run backwards) puts the features of r x r
neighbouring patches side by side as channels of one token, as SmolVLM and InternVL do: an image
takes r^2 times fewer tokens, and nothing of it is lost before the projector.

Letters in shapes: I images, P patches, L image tokens (P without pixel shuffle), n tiles along a
side, r the side of a pixel shuffle.
"""

from collections.abc import Callable, Sequence
from math import isqrt

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from alignshared.errors import ArgumentError
from aligntrain.model.alignment import is_trainable
from aligntrain.model.configuration import AlignGPTConfig

ReadTiles = Callable[[torch.Tensor], torch.Tensor]
"""A tower: features [tiles, L, width] of tiles [tiles, 3, tile, tile]."""


def image_features(
    tower: PreTrainedModel,
    pixel_values: torch.Tensor,
    config: AlignGPTConfig,
    run: Callable[..., BaseModelOutputWithPooling] | None = None,
) -> torch.Tensor:
    """Return features [I, L, config.feature_width] of `pixel_values` [I, 3, H, W].

    They are the tower's hidden state `vision_feature_layer` (0 is the embeddings), without the
    class token if `vision_feature_select` is `patch`, of each of the `vision_scales`, side by side,
    in the tower's dtype; those of a square of patches are one token under `vision_pixel_shuffle`.
    A frozen tower keeps no graph. `run` is called in the place of `tower`, to see its outputs.

    Raises:
        ArgumentError: the images have another shape than the model reads.
    """
    height, width = config.image_size
    if tuple(pixel_values.shape[1:]) != (3, height, width):
        raise ArgumentError(
            f"pixel_values have the shape {list(pixel_values.shape)}, but the vision tower reads "
            f"[images, 3, {height}, {width}]; make them with the model's own processor."
        )

    def read(images: torch.Tensor) -> torch.Tensor:
        output = (run or tower)(images, output_hidden_states=True, return_dict=True)
        assert output.hidden_states is not None, "asked for"
        features = output.hidden_states[config.vision_feature_layer]
        if config.has_class_token and config.vision_feature_select == "patch":
            features = features[:, 1:]  # [tiles, 1 + L, width] -> [tiles, L, width]
        return features

    with torch.set_grad_enabled(is_trainable(tower) and torch.is_grad_enabled()):
        if config.scales is None:
            features = read(pixel_values)
        else:
            tile = config.vision_config.image_size
            features = multi_scale(pixel_values, config.scales, tile, read)
    if config.vision_pixel_shuffle > 1:
        features = pixel_shuffle(features, config.grid, config.vision_pixel_shuffle)
    return features


def pixel_shuffle(features: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Return features [I, P / r^2, r^2 * width] of patches [I, P, width], r = `side`.

    Patches lie in rows of a `grid` (rows, columns). A token has the features of a square of patches
    row by row; tokens lie in rows too.
    """
    rows, columns = grid
    squares = features.unflatten(1, (rows // side, side, columns // side, side))
    # [I, rows / r, r, columns / r, r, width] -> [I, rows / r, columns / r, r, r, width]
    return squares.transpose(2, 3).flatten(3).flatten(1, 2)


def multi_scale(
    pixel_values: torch.Tensor, scales: Sequence[int], tile: int, read: ReadTiles
) -> torch.Tensor:
    """Return features [I, L, len(scales) * width] of images [I, 3, S, S], S the last scale.

    `read` is called row of tiles by row of tiles, equally often for any number of images, so that
    ranks sharing the tower under ZeRO-3 stay together.
    """
    return torch.cat(
        [_read_scale(_resize(pixel_values, scale), tile, read) for scale in scales], dim=-1
    )


def tower_bytes(config: AlignGPTConfig, images: int, itemsize: int) -> int:
    """Return the peak bytes of reading `images` images, in values of `itemsize` bytes.

    Counted are the images, in float32 too, every hidden state of the tower and one layer's inner
    ones for the tiles read at once, and the features.
    """
    vision = config.vision_config
    height, width = config.image_size
    tokens = config.patches + int(config.has_class_token)
    tiles = images * (config.scales[-1] // vision.image_size if config.scales else 1)
    states = (vision.num_hidden_layers + 5) * vision.hidden_size + 2 * vision.intermediate_size
    return (
        images * 3 * height * width * (4 + itemsize)
        + tiles * tokens * states * itemsize
        + images * config.image_tokens * config.feature_width * itemsize
    )


class Projector(nn.Sequential):
    """Linear(width, d), activation, Linear(d, d) on features [..., width].

    `width` is the vision tower's, times the number of scales and the patches of a token; `d` is
    the LLM's. Parameters: `0.{weight,bias}`, `2.{weight,bias}`.
    """

    def __init__(self, config: AlignGPTConfig) -> None:
        width = config.text_config.hidden_size
        super().__init__(
            nn.Linear(config.feature_width, width),
            ACT2FN[config.projector_act],
            nn.Linear(width, width),
        )


def _resize(pixel_values: torch.Tensor, scale: int) -> torch.Tensor:
    if pixel_values.shape[-1] == scale:
        return pixel_values
    resized = functional.interpolate(
        pixel_values.float(), size=(scale, scale), mode="bicubic", antialias=True
    )
    return resized.to(pixel_values.dtype)


def _read_scale(images: torch.Tensor, tile: int, read: ReadTiles) -> torch.Tensor:
    """Return features [I, L, width] of `images` [I, 3, n tile, n tile]."""
    count = images.shape[-1] // tile
    if count == 1:
        return read(images)
    rows = [_read_row(row, tile, read) for row in images.split(tile, dim=2)]
    whole = torch.cat(rows, dim=2)  # [I, width, n side, n side]
    side = whole.shape[-1] // count
    pooled = functional.interpolate(whole.float(), size=(side, side), mode="area")
    return pooled.to(whole.dtype).flatten(2).transpose(1, 2)  # [I, side * side, width]


def _read_row(row: torch.Tensor, tile: int, read: ReadTiles) -> torch.Tensor:
    """Return features [I, width, side, n side] of a row of tiles [I, 3, tile, n tile]."""
    tiles = row.split(tile, dim=3)
    features = read(torch.cat(tiles))  # [n I, L, width]
    side = isqrt(features.shape[1])
    grids = features.transpose(1, 2).unflatten(2, (side, side))  # [n I, width, side, side]
    return torch.cat(grids.chunk(len(tiles)), dim=3)
