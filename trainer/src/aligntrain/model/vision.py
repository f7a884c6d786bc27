"""Image features: hidden states of a CLIP or SigLIP vision tower of transformers."""

from typing import Any

import torch
from torch import nn

from alignshared import InputError
from aligntrain.model.configuration import AlignGPTConfig


def image_features(
    tower: nn.Module, pixel_values: torch.Tensor, config: AlignGPTConfig
) -> torch.Tensor:
    """Features [I, L, vision width] of `pixel_values` [I, 3, H, W], in the tower's dtype.

    Hidden state `vision_feature_layer` of the tower, counted as transformers counts them (0 is the
    embeddings); without the class token where `vision_feature_select` is `patch`. A frozen tower
    keeps no graph.

    Raises:
        InputError: the images have another shape than the tower reads.
    """
    size: Any = config.vision_config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if tuple(pixel_values.shape[1:]) != (3, height, width):
        raise InputError(
            f"pixel_values have the shape {list(pixel_values.shape)}, but the vision tower reads "
            f"[images, 3, {height}, {width}]; make them with the model's own processor."
        )
    trains = any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
        output: Any = tower(pixel_values, output_hidden_states=True, return_dict=True)
    features = output.hidden_states[config.vision_feature_layer]
    if config.has_class_token and config.vision_feature_select == "patch":
        features = features[:, 1:]
    return features
