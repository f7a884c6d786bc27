"""CLIP: unit embeddings of images and captions, and scores.

Nothing else imports open_clip.
"""

from aligncurate.core.clip.model import ClipModel, available_gpus, one_torch_thread, score_pairs
from aligncurate.core.clip.resolve import ResolvedClip, resolve_clip, resolve_recorded
from aligncurate.core.clip.view import PixelView, pixel_view

__all__ = [
    "ClipModel",
    "PixelView",
    "ResolvedClip",
    "available_gpus",
    "one_torch_thread",
    "pixel_view",
    "resolve_clip",
    "resolve_recorded",
    "score_pairs",
]
