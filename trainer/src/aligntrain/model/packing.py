# transformers types its classes for its own use.
# pyright: reportPrivateUsage=false
"""Packing: the rows of a batch concatenated in a single sequence, without padding.

The LLM computes nothing for padding. Attention stays inside each sample and positions restart with
it, so losses and gradients equal those of the padded batch up to rounding.

The boundaries of the samples replace the attention mask: transformers passes a 4-dimensional mask
through unchanged, under gradient checkpointing too. `segment_attention`, registered here as an
attention implementation, recognises boundaries by their dtype.

Letters in shapes: B rows, T padded positions, S packed positions, H query heads, H' key and value
heads (H is a multiple of H'), D head size.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SEGMENTS = "aligntrain_segments"
"""Name under which `segment_attention` is registered with transformers."""

_BOUNDARIES_DTYPE = torch.int32
_ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Layer types that mix tokens by attention alone. A recurrent layer would carry its state
from one sample into the next.
"""


@dataclass(frozen=True, slots=True)
class Packing:
    """Layout of B padded rows as one row of S tokens.

    `tokens` [B, T] bool selects the tokens, `positions` [1, S] int64 counts from 0 within each
    sample, `row` [S] int64 is the row of each token, and `boundaries` [1, 1, 1, B + 1] int32 holds
    the start of each sample and the end of the last.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    row: torch.Tensor
    boundaries: torch.Tensor

    @classmethod
    def of(cls, attention_mask: torch.Tensor) -> "Packing":
        """Return the packing of a batch with `attention_mask` [B, T], padded left or right."""
        tokens = attention_mask.bool()
        lengths = tokens.sum(dim=1)  # [B]
        positions = (tokens.cumsum(dim=1) - 1)[tokens]  # [S]
        ends = nn.functional.pad(lengths.cumsum(dim=0), (1, 0)).to(_BOUNDARIES_DTYPE)  # [B + 1]
        row = torch.arange(len(tokens), device=tokens.device)
        return cls(
            tokens,
            positions.unsqueeze(0),
            # output_size spares a synchronisation with the GPU.
            row.repeat_interleave(lengths, output_size=positions.shape[0]),
            ends.view(1, 1, 1, -1),
        )

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Pack `values` [B, T, ...] to [1, S, ...]."""
        return values[self.tokens].unsqueeze(0)


def prepare_packing(language_model: PreTrainedModel) -> str | None:
    """Make `language_model` accept packed rows; return the obstacle if it cannot, else None.

    Without SDPA (eager attention for models that cap their logits, or a flash-attention package)
    transformers finds the samples by their positions.
    """
    problem = obstacle(language_model)
    config = language_model.config.get_text_config()
    if problem is None and config._attn_implementation == "sdpa":
        language_model.set_attn_implementation(SEGMENTS)
    return problem


def obstacle(language_model: PreTrainedModel) -> str | None:
    """Return the obstacle to separating packed samples in `language_model`, or None.

    With None, only attention mixes tokens: samples may be packed, and rows may join and leave a
    running batch.
    """
    if "position_ids" not in inspect.signature(language_model.forward).parameters:
        return "it takes no position_ids"
    config = language_model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS
    return f"it has layers of {', '.join(sorted(others))}" if others else None


def mask_of(packing: Packing, language_model: PreTrainedModel) -> torch.Tensor | None:
    """Return the `attention_mask` for packed rows: the boundaries, or None without SEGMENTS."""
    attention = language_model.config.get_text_config()._attn_implementation
    return packing.boundaries if attention == SEGMENTS else None


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each sample; transformers' SDPA if the mask is an ordinary one.

    `query` [1, H, S, D], `key` and `value` [1, H', S, D]; returns [1, S, H, D]. On a GPU in 16 bits
    one flash-attention call covers all samples; elsewhere SDPA runs once per sample.
    """
    if attention_mask is None or attention_mask.dtype != _BOUNDARIES_DTYPE:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    ends = attention_mask.flatten()  # [B + 1]
    window = kwargs.get("sliding_window")
    is_16_bit = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and is_16_bit and not dropout:
        return _flash_attention(query, key, value, ends, scaling, window), None
    lengths = ends.diff().tolist()
    samples = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    outputs = [
        sdpa_attention_forward(
            module, q, k, v, _window_mask(q, window), dropout=dropout, scaling=scaling, **kwargs
        )[0]
        for q, k, v in samples
    ]  # each [1, length, H, D]
    return torch.cat(outputs, dim=1), None


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """Return the mask [1, 1, length, length] of a sample longer than the window, else None."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril().triu(1 - window).view(1, 1, length, length)


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = int(ends.diff().max())
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))  # [S, H, D]
    output = varlen_attn(
        *(q, k, v, ends, ends, longest, longest),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # right 0: causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0)


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
