"""Keys and values of the rows that are decoded together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class BatchCache:
    """Keys and values of B rows, padded on the left.

    `cache` holds [B, heads, T, head_dim] for each layer; `mask` [B, T] int64 is 0 at padding.
    Positions count each row's own tokens, so the amount of padding does not matter.
    """

    cache: Any
    mask: torch.Tensor

    def beside(self, other: "BatchCache") -> "BatchCache":
        """Concatenate the rows of `other` after these."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        layers = [
            tuple(_stacked(a, b, length) for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True)
        ]
        masks = [functional.pad(m, (length - m.shape[1], 0)) for m in (self.mask, other.mask)]
        return BatchCache(DynamicCache(layers), torch.cat(masks))

    def only(self, rows: Sequence[int]) -> "BatchCache":
        """Select `rows` and drop the padding that none of them needs."""
        places = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[places]
        first = int(mask.any(dim=0).int().argmax())
        layers = [
            tuple(None if one is None else one[places, :, first:] for one in pair)
            for pair in _layers(self.cache)
        ]
        return BatchCache(DynamicCache(layers), mask[:, first:])


def _layers(cache: Any) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _stacked(a: torch.Tensor | None, b: torch.Tensor | None, length: int) -> torch.Tensor | None:
    if a is None or b is None:  # a layer that uses another one's keys and values
        return None
    return torch.cat([functional.pad(one, (0, 0, length - one.shape[2], 0)) for one in (a, b)])
