"""Features of images that a run meets again, computed once."""

import hashlib
from dataclasses import KW_ONLY, dataclass, field

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
    _: KW_ONLY
    used: int = field(default=0, init=False)
    _kept: dict[bytes, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(
        self, tower: PreTrainedModel, pixel_values: torch.Tensor, config: AlignGPTConfig
    ) -> torch.Tensor:
        """Return features [I, L, config.feature_width] of `pixel_values` [I, 3, H, W]."""
        return torch.stack([self._of(tower, image, config) for image in pixel_values])

    def _of(
        self, tower: PreTrainedModel, image: torch.Tensor, config: AlignGPTConfig
    ) -> torch.Tensor:
        key = hashlib.blake2b(image.cpu().contiguous().view(torch.uint8).numpy().data).digest()
        kept = self._kept.get(key)
        if kept is None:
            # One image at a time: in a batch it would depend on the others by rounding, and a
            # resumed run, which meets an image first in another batch, would lose its exactness.
            features = image_features(tower, image[None], config)[0]
            kept = features.cpu()
            if self.used + kept.nbytes <= self.limit:
                self._kept[key] = kept
                self.used += kept.nbytes
        return kept.to(image.device)
