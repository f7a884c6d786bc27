"""The head of the LLM and its loss, in pieces where the logits would fill the memory.

A vocabulary of 128,000 makes half a megabyte of logits of every token, in float32 and three times
over with log-softmax and gradient. In pieces there is one piece of them at a time: its gradients
are computed on the spot, so nothing of it is kept and nothing computed twice.

torch's own `linear_cross_entropy` does the same for the sum of the losses; here each token's is
wanted too, for the loss by level.
"""

from typing import Any

import torch
from torch import nn

from aligntrain.model.losses import IGNORED

_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""What configurations call that which some LLMs do with logits behind their head."""


def rows_at_once(vocabulary: int, most_bytes: int) -> int:
    """Of how many tokens the logits in float32 take `most_bytes` at most; 1 at least."""
    return max(1, most_bytes // (4 * vocabulary))


def body_of(language_model: Any) -> nn.Module | None:
    """The module that gives the hidden states [B, T, d] that the head reads; None where the logits
    are not those of one linear layer behind it.
    """
    config = language_model.config.get_text_config()
    body, head = language_model.base_model, language_model.get_output_embeddings()
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _SCALED)
    return None if body is language_model or type(head) is not nn.Linear or scaled else body


def losses_at_once(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [K] float32 of `logits` [K, V], 0 where `targets` [K] are IGNORED."""
    return nn.functional.cross_entropy(
        logits.float(), targets, reduction="none", ignore_index=IGNORED
    )


def losses_in_pieces(
    hidden: torch.Tensor, targets: torch.Tensor, language_model: Any, most_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of what `losses_at_once` would give of the logits behind `hidden` [K, d], and the
    losses [K] themselves, detached; no more than `most_bytes` of logits are ever there.
    """
    head = language_model.get_output_embeddings()
    vocabulary = int(language_model.config.get_text_config().vocab_size)
    rows = rows_at_once(vocabulary, most_bytes)
    losses: list[torch.Tensor] = []

    def summed(given: torch.Tensor) -> torch.Tensor:
        return _Summed.apply(given, head.weight, head.bias, targets, rows, losses)  # pyright: ignore

    # By a call of the head itself, since under ZeRO-3 it has its weights only while it runs.
    head.forward = summed
    try:
        total = head(hidden)
    finally:
        del head.forward
    return total, torch.cat(losses)


class _Summed(torch.autograd.Function):
    """The summed loss of a linear head; its gradient of the logits is softmax less one-hot."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        rows: int,
        losses: list[torch.Tensor],
    ) -> torch.Tensor:
        inputs = (hidden, weight, bias)
        gradients = [
            torch.zeros_like(value) if value is not None and needed else None
            for value, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        for begin in range(0, len(hidden), rows):
            part = slice(begin, begin + rows)
            logits = nn.functional.linear(hidden[part], weight, bias)
            losses.append(losses_at_once(logits, targets[part]))
            if any(gradient is not None for gradient in gradients):
                slope = _slope(logits, targets[part])
                _add(gradients, slope, hidden[part], weight, part)
        ctx.save_for_backward(*gradients)
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        own = [None if g is None else g * outer[0].to(g.dtype) for g in ctx.saved_tensors]
        return (*own, None, None, None)


def _slope(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The gradient [K, V] of the summed loss for `logits` [K, V], in their type."""
    slope = logits.float().softmax(dim=-1)
    wanted = targets != IGNORED
    places = targets.clamp(min=0).unsqueeze(-1)
    slope.scatter_add_(-1, places, slope.new_full((1, 1), -1.0).expand_as(places))
    return slope.mul_(wanted.unsqueeze(-1)).to(logits.dtype)


def _add(
    gradients: list[torch.Tensor | None],
    slope: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    part: slice,
) -> None:
    """Add a piece's share to the gradients of hidden states, weight and bias."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        torch.mm(slope, weight, out=of_hidden[part])
    if of_weight is not None:
        of_weight.addmm_(slope.T, hidden)
    if of_bias is not None:
        of_bias += slope.sum(dim=0)
