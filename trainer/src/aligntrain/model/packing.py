"""Rows of a batch, one behind the other in one sequence without padding.

The LLM then computes nothing for padding. Attention stays inside each sample and positions start
anew with it, so losses and gradients are those of the padded batch, up to rounding.

The samples' boundaries go to the layers in the place of the attention mask: transformers hands a
mask of four dimensions through as it is, with gradient checkpointing too, and `attend` below, which
is registered as an attention implementation of its own, knows it by its type.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SEGMENTS = "aligntrain_segments"
"""The attention implementation that `attend` is registered as."""

_PACKED_TYPE = torch.int32
_KINDS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers in which tokens meet by attention alone; a recurrent one would carry its state
from a sample into the next.
"""


@dataclass(frozen=True, slots=True)
class Packing:
    """The S tokens of a batch of B rows, as one row.

    `places` [B, T] bool are the tokens, `positions` [1, S] int64 count those of each row from 0,
    `row` [S] int64 says whose they are, `boundaries` [1, 1, 1, B + 1] int32 where each row begins
    and the last one ends.
    """

    places: torch.Tensor
    positions: torch.Tensor
    row: torch.Tensor
    boundaries: torch.Tensor

    @classmethod
    def of(cls, attention_mask: torch.Tensor) -> "Packing":
        """That of a batch with `attention_mask` [B, T], padded left or right."""
        places = attention_mask.bool()
        lengths = places.sum(dim=1)
        positions = (places.cumsum(dim=1) - 1)[places]
        ends = nn.functional.pad(lengths.cumsum(dim=0), (1, 0)).to(_PACKED_TYPE)
        row = torch.arange(len(places), device=places.device)
        return cls(
            places,
            positions.unsqueeze(0),
            row.repeat_interleave(lengths, output_size=positions.shape[0]),
            ends.view(1, 1, 1, -1),
        )

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """`values` [B, T, ...] of the tokens alone, [1, S, ...]."""
        return values[self.places].unsqueeze(0)


def prepare_packing(language_model: Any) -> str | None:
    """Let `language_model` take packed rows; what stands against it, or None.

    Without SDPA (eager for the models that cap their logits, or a flash-attention package)
    transformers itself finds the samples by their positions.
    """
    why_not = obstacle(language_model)
    config = language_model.config.get_text_config()
    if why_not is None and config._attn_implementation == "sdpa":
        language_model.set_attn_implementation(SEGMENTS)
    return why_not


def obstacle(language_model: Any) -> str | None:
    """Why `language_model` cannot be told where a row begins and ends, or None.

    Where there is none, tokens meet by attention alone: rows may stand one behind the other, and
    one that is read may be put beside others, or taken from them.
    """
    if "position_ids" not in inspect.signature(language_model.forward).parameters:
        return "it takes no position_ids"
    config = language_model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - _KINDS
    return f"it has layers of {', '.join(sorted(others))}" if others else None


def mask_of(packing: Packing, language_model: Any) -> torch.Tensor | None:
    """What `language_model` takes as the attention mask of packed rows."""
    kind = language_model.config.get_text_config()._attn_implementation
    return packing.boundaries if kind == SEGMENTS else None


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each segment; transformers' SDPA where the mask is a usual one.

    `query` [1, H, S, D], `key` and `value` [1, H', S, D], H a multiple of H'; returns [1, S, H, D].
    On a GPU in 16 bits it is one call of flash attention over all segments; elsewhere one of SDPA
    for each.
    """
    if attention_mask is None or attention_mask.dtype != _PACKED_TYPE:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    ends = attention_mask.flatten()
    window = kwargs.get("sliding_window")
    sixteen = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and sixteen and not dropout:
        return _flash(query, key, value, ends, scaling, window), None
    lengths = ends.diff().tolist()
    pieces = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    attended = [
        sdpa_attention_forward(
            module, q, k, v, _band(q, window), dropout=dropout, scaling=scaling, **kwargs
        )[0]
        for q, k, v in pieces
    ]
    return torch.cat(attended, dim=1), None


def _band(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """The mask of a segment that is longer than the layer's window, None of others."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril().triu(1 - window).view(1, 1, length, length)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = int(ends.diff().max())
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    attended = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, torch.Tensor)
    return attended.unsqueeze(0)


AttentionInterface.register(SEGMENTS, attend)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
