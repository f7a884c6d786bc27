"""Features of images that a run meets again, computed once."""

import hashlib
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.vision import image_features


@dataclass
class FeatureCache:
    """`image_features` of a frozen tower, kept in host memory up to `limit` bytes.

    An image is known by its pixels, so that it may come from any row. Nothing is dropped for
    another: rows of an epoch come in random order, so any images are as good to keep as others.
    """

    limit: int
    used: int = field(default=0, init=False)
    _kept: dict[bytes, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(
        self, tower: PreTrainedModel, pixel_values: torch.Tensor, config: AlignGPTConfig
    ) -> torch.Tensor:
        """Return features [I, L, config.feature_width] of `pixel_values` [I, 3, H, W]."""
        in_memory = pixel_values.cpu().contiguous().view(torch.uint8).numpy()
        keys = [hashlib.blake2b(pixels.data).digest() for pixels in in_memory]
        features = [
            self._of(key, tower, image, config)
            for key, image in zip(keys, pixel_values, strict=True)
        ]
        return torch.stack(features).to(pixel_values.device)

    def _of(
        self, key: bytes, tower: PreTrainedModel, image: torch.Tensor, config: AlignGPTConfig
    ) -> torch.Tensor:
        """Return the features of `image`, known by `key`, in host memory."""
        kept = self._kept.get(key)
        if kept is None:
            # One image at a time: in a batch it would depend on the others by rounding, and a
            # resumed run, which meets an image first in another batch, would lose its exactness.
            kept = image_features(tower, image[None], config)[0].cpu()
            if self.used + kept.nbytes <= self.limit:
                self._kept[key] = kept
                self.used += kept.nbytes
        return kept
