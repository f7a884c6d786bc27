"""The projector: from image features to the LLM's embeddings (LLaVA-1.5's `mlp2x_gelu`)."""

from torch import nn
from transformers.activations import ACT2FN

from aligntrain.model.configuration import AlignGPTConfig


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
