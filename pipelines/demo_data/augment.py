"""Turn cached RGBA drawings into training pixels: affine, colours, background, blur, in batches."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

WHITE_SHARE = 0.6
BLUR_SHARE = 0.15
GREY_SHARE = 0.05


def _affine(batch: int, flips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random maps of output to input coordinates, float32 [B, 2, 3]."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    angle = uniform(-1, 1) * math.radians(12)
    scale_x, scale_y = uniform(0.85, 1.25), uniform(0.92, 1.08)
    scale_y = scale_x * scale_y
    mirrored = flips & (uniform(0, 1) < 0.5)
    sign = torch.where(mirrored, -1.0, 1.0)
    shear = uniform(-0.1, 0.1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([sign * scale_x * cos, -scale_y * sin + shear, uniform(-0.12, 0.12)], dim=1),
        torch.stack([sign * scale_x * sin, scale_y * cos, uniform(-0.12, 0.12)], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _colour_maps(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Random near-identity colour matrices (saturation, gain, cross-talk), float32 [B, 3, 3]."""
    saturation = torch.empty(batch, 1, 1).uniform_(0.6, 1.4, generator=generator)
    saturation[torch.rand(batch, generator=generator) < GREY_SHARE] = 0.0
    grey = torch.full((3, 3), 1 / 3)
    maps = saturation * torch.eye(3) + (1 - saturation) * grey
    gain = torch.empty(batch, 1, 1).uniform_(0.75, 1.2, generator=generator)
    return gain * maps + 0.05 * torch.randn(batch, 3, 3, generator=generator)


def _backgrounds(batch: int, generator: torch.Generator) -> torch.Tensor:
    """White mostly, else one random colour, float32 [B, 3, 1, 1]."""
    colours = torch.rand(batch, 3, generator=generator)
    colours[torch.rand(batch, generator=generator) < WHITE_SHARE] = 1.0
    return colours[:, :, None, None]


def augment(
    drawings: torch.Tensor, flips: torch.Tensor, size: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw one random view of each drawing.

    drawings: uint8 [B, H, W, 4], straight alpha; flips: bool [B], whether mirroring keeps the
    meaning. Returns float32 [B, 3, size, size] in [0, 1].
    """
    batch = drawings.shape[0]
    pixels = drawings.permute(0, 3, 1, 2).float() / 255
    colour, alpha = pixels[:, :3], pixels[:, 3:]
    colour = torch.einsum("bij,bjhw->bihw", _colour_maps(batch, generator), colour)
    colour = colour.clamp(0, 1) * alpha
    grid = functional.affine_grid(
        _affine(batch, flips, generator), [batch, 4, size, size], align_corners=False
    )
    moved = functional.grid_sample(torch.cat([colour, alpha], dim=1), grid, align_corners=False)
    views = moved[:, :3] + (1 - moved[:, 3:]) * _backgrounds(batch, generator)
    blurred = torch.rand(batch, generator=generator) < BLUR_SHARE
    views[blurred] = functional.avg_pool2d(
        views[blurred], 3, stride=1, padding=1, count_include_pad=False
    )
    return views.clamp(0, 1)
