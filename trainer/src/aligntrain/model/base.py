# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportAssignmentType=false
# pyright: reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false
"""What every model of the family has: its configuration, its initial weights, its output."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from aligntrain.model.alignment import Alignment
from aligntrain.model.configuration import AlignGPTConfig


@dataclass
class AlignGPTOutput(ModelOutput):
    """What a forward pass gives.

    `loss` is the mean over all labelled tokens of the batch; `sample_loss` [B] float32 (detached)
    the mean over each row's own, 0 where it has none, and `sample_tokens` [B] int64 their number.
    `gate_weights` [B, N-1] float32 are zero in rows without an image, and None where no gate spoke.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    gate_weights: torch.Tensor | None = None
    sample_loss: torch.Tensor | None = None
    sample_tokens: torch.Tensor | None = None


class AlignGPTPreTrainedModel(PreTrainedModel):
    """What transformers asks of every model of a family."""

    config_class = AlignGPTConfig
    config: AlignGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    # Whether an attention kernel can be used is for the two towers to say; each checks its own.
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform for the table (PAPER.md), torch's own for the linear layers, as in the
        authors' code; the vision tower and the LLM initialise themselves.
        """
        if isinstance(module, Alignment):
            initialization.xavier_uniform_(module.table)
        elif isinstance(module, nn.Linear):
            initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            initialization.uniform_(module.bias, -bound, bound)
