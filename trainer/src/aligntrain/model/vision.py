"""Image features: hidden states of a CLIP or SigLIP vision tower of transformers."""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from alignshared import InputError
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.multi_scale import multi_scale


def image_features(
    tower: nn.Module, pixel_values: torch.Tensor, config: AlignGPTConfig
) -> torch.Tensor:
    """Features [I, L, config.feature_width] of `pixel_values` [I, 3, H, W], in the tower's dtype.

    Hidden state `vision_feature_layer` of the tower, counted as transformers counts them (0 is the
    embeddings); without the class token where `vision_feature_select` is `patch`; of each of the
    `vision_scales`, side by side. A frozen tower keeps no graph.

    Raises:
        InputError: the images have another shape than the model reads.
    """
    height, width = config.image_size
    if tuple(pixel_values.shape[1:]) != (3, height, width):
        raise InputError(
            f"pixel_values have the shape {list(pixel_values.shape)}, but the vision tower reads "
            f"[images, 3, {height}, {width}]; make them with the model's own processor."
        )
    trains = any(parameter.requires_grad for parameter in tower.parameters())

    def read(pictures: torch.Tensor) -> torch.Tensor:
        output: Any = tower(pictures, output_hidden_states=True, return_dict=True)
        features = output.hidden_states[config.vision_feature_layer]
        if config.has_class_token and config.vision_feature_select == "patch":
            features = features[:, 1:]
        return features

    with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
        if config.scales is None:
            return read(pixel_values)
        return multi_scale(pixel_values, config.scales, config.vision_config.image_size, read)


class Projector(nn.Sequential):
    """Linear(features, d), activation, Linear(d, d), on features [..., features].

    Features are the vision tower's width, times the number of scales.

    Parameters: `0.{weight,bias}`, `2.{weight,bias}`.
    """

    def __init__(self, config: AlignGPTConfig) -> None:
        width = config.text_config.hidden_size
        super().__init__(
            nn.Linear(config.feature_width, width),
            ACT2FN[config.projector_act],
            nn.Linear(width, width),
        )
