"""Next-token cross-entropy: per batch and per sample, padded or packed, whole or in chunks.

Letters in shapes: B rows, T positions of a padded row, S positions of a packed one, K positions
that have logits, V vocabulary, d hidden size.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from aligntrain.model.packing import Packing
from aligntrain.prompts.placeholders import IGNORE_INDEX

Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Batch loss (scalar), mean loss of each row [B] float32 and labelled tokens of each row [B]."""

_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Config keys of LLMs that cap or scale the logits after their head."""


def label_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the positions [K] int64 that predict a label in some row of `labels` [B, T].

    Logits of other positions do not enter the loss. K is at least 1.
    """
    positions = (labels[:, 1:] != IGNORE_INDEX).any(dim=0).nonzero()[:, 0]
    return positions if len(positions) else positions.new_zeros(1)


def next_token_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    items: int | float | torch.Tensor | None,
    logits_to_keep: int | torch.Tensor,
    row_weights: torch.Tensor | None = None,
    *,
    are_shifted: bool = False,
) -> Losses:
    """Return the cross-entropy of `logits` [B, T, V] against `labels` [B, T] shifted by one.

    With `are_shifted` a label is already at the position that predicts it.

    Fewer `logits` [B, K, V] belong to the last K positions, or to the positions `logits_to_keep`
    [K] int64. `row_weights` [B] float32 multiply the losses of each row's tokens.

    Returns:
        The (weighted) sum over all labelled tokens divided by `items` (default: their number, or
        the sum of their weights), the unweighted mean of each row [B] float32, detached and 0
        without labels, and the labels per row [B] int64.
    """
    targets = labels if are_shifted else _shift(labels)  # [B, T]
    if logits.shape[1] != targets.shape[1]:
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        targets = targets[:, kept]  # [B, K]
    is_label = targets != IGNORE_INDEX
    rows = is_label.nonzero()[:, 0]  # row of each label, in reading order
    # Select before the cast to float32, so that image and prompt positions cost no memory.
    losses = nn.functional.cross_entropy(
        logits[is_label].float(), targets[is_label], reduction="none"
    )
    total = weighted_sum(losses, None if row_weights is None else row_weights[rows])
    divisor = _divisor(torch.ones_like(rows), rows, row_weights) if items is None else items
    return total / divisor, *_per_row(losses, torch.ones_like(rows), rows, len(labels))


def packed_targets(packing: Packing, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target [S] int64 of each packed token, and the positions [K] that have one.

    K is at least 1, so that every rank runs the LLM's head.
    """
    # Shift before packing: the last token of a sample must not predict the next sample's first.
    targets = packing.rows(_shift(labels))[0]
    positions = (targets != IGNORE_INDEX).nonzero()[:, 0]
    return targets, positions if len(positions) else positions.new_zeros(1)


def packed_losses(
    total: torch.Tensor,
    losses: torch.Tensor,
    packing: Packing,
    targets: torch.Tensor,
    positions: torch.Tensor,
    items: int | float | torch.Tensor | None,
    row_weights: torch.Tensor | None = None,
) -> Losses:
    """Return the values of `next_token_losses` for packed rows.

    `losses` [K] belong to the `positions` from `packed_targets`; `total` is their (weighted) sum
    and carries the gradient.
    """
    is_label, rows = targets[positions] != IGNORE_INDEX, packing.row[positions]
    divisor = _divisor(is_label, rows, row_weights) if items is None else items
    return total / divisor, *_per_row(losses, is_label, rows, len(packing.tokens))


def kept_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    positions: torch.Tensor,
    weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum, weighted by `weights` [K] if given, of the losses [K] at `positions` [K].

    `logits` [1, S, V] or [1, K, V]: all S positions if the LLM does not know logits_to_keep, or if
    all have a label. `targets` is [S].
    """
    has_all = logits.shape[1] == len(targets)
    kept = logits[0, positions] if has_all else logits[0]  # [K, V]
    losses = token_cross_entropy(kept, targets[positions])
    return weighted_sum(losses, weights), losses


def weighted_sum(losses: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Return the sum of `losses` [K], each times its weight of `weights` [K] if given."""
    return losses.sum() if weights is None else (losses * weights).sum()


def token_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy [K] float32 of `logits` [K, V], 0 at IGNORE_INDEX."""
    return nn.functional.cross_entropy(
        logits.float(), targets, reduction="none", ignore_index=IGNORE_INDEX
    )


@torch.no_grad()
def forbid(logits: torch.Tensor, ranges: Sequence[tuple[int, int]]) -> None:
    """Set `logits` [..., V] of the ids in `ranges` to the least value: a probability of 0.

    In place, and unseen by autograd: they have no gradient either.
    """
    for first, end in ranges:
        logits[..., first:end] = torch.finfo(logits.dtype).min


def rows_per_chunk(vocabulary: int, max_bytes: int) -> int:
    """Return the number of tokens, at least 1, whose float32 logits fit into `max_bytes`."""
    return max(1, max_bytes // (4 * vocabulary))


def body_of(language_model: PreTrainedModel) -> nn.Module | None:
    """Return the module whose hidden states [B, T, d] the head reads.

    None if the head is more than one linear layer (scaled or capped logits).
    """
    config = language_model.config.get_text_config()
    body, head = language_model.base_model, language_model.get_output_embeddings()
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _SCALED)
    return None if body is language_model or type(head) is not nn.Linear or scaled else body


def chunked_cross_entropy(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    language_model: PreTrainedModel,
    max_bytes: int,
    weights: torch.Tensor | None = None,
    forbidden: Sequence[tuple[int, int]] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of `hidden` [K, d] and the loss [K] of each token, detached.

    Equal to `token_cross_entropy` of the head's logits, those in the ranges `forbidden` forbidden,
    and its `weighted_sum` with `weights` [K] float32, but at most `max_bytes` of float32 logits
    exist at a time.
    """
    head = cast(nn.Linear, language_model.get_output_embeddings())
    rows = rows_per_chunk(int(language_model.config.get_text_config().vocab_size), max_bytes)
    losses: list[torch.Tensor] = []

    def summed(input: torch.Tensor) -> torch.Tensor:
        return ChunkedLinearCrossEntropy.apply(  # pyright: ignore
            input, head.weight, head.bias, targets, weights, rows, losses, forbidden
        )

    # Call the head itself: under ZeRO-3 its weights are gathered only while it runs.
    head.forward = summed
    try:
        total = head(hidden)
    finally:
        del head.forward
    return total, torch.cat(losses)


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of a linear head, weighted by token if there are weights.

    Gradients are computed chunk by chunk in the forward pass, while a chunk's logits exist, and
    scaled in the backward pass.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes them one by one
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        rows: int,
        losses: list[torch.Tensor],
        forbidden: Sequence[tuple[int, int]] = (),
    ) -> torch.Tensor:
        inputs = (hidden, weight, bias)  # [K, d], [V, d], [V]
        gradients = [
            torch.zeros_like(value) if value is not None and needed else None
            for value, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        hidden_gradient, weight_gradient, bias_gradient = gradients
        for begin in range(0, len(hidden), rows):
            chunk = slice(begin, begin + rows)
            logits = nn.functional.linear(hidden[chunk], weight, bias)  # [rows, V]
            forbid(logits, forbidden)
            losses.append(token_cross_entropy(logits, targets[chunk]))
            if any(gradient is not None for gradient in gradients):
                own = None if weights is None else weights[chunk]
                slope = _logits_gradient(logits, targets[chunk], own)
                if hidden_gradient is not None:
                    torch.mm(slope, weight, out=hidden_gradient[chunk])  # [rows, V] @ [V, d]
                if weight_gradient is not None:
                    weight_gradient.addmm_(slope.T, hidden[chunk])  # [V, rows] @ [rows, d]
                if bias_gradient is not None:
                    bias_gradient += slope.sum(dim=0)
        ctx.save_for_backward(*gradients)
        return weighted_sum(torch.cat(losses), weights)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = [None if g is None else g * outer[0].to(g.dtype) for g in ctx.saved_tensors]
        return (*scaled, None, None, None, None, None)


def _shift(labels: torch.Tensor) -> torch.Tensor:
    """Return the target of each position of `labels` [B, T]: the label one position later."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def _per_row(
    losses: torch.Tensor, is_label: torch.Tensor, rows: torch.Tensor, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean loss [B] and the labels [B] of each row from token `losses` [K], of which
    `rows` [K] names the row.
    """
    tokens = rows.new_zeros(batch).index_add(0, rows, is_label.long())
    summed = losses.new_zeros(batch).index_add(0, rows, losses.detach())
    return summed / tokens.clamp(min=1), tokens


def _divisor(
    is_label: torch.Tensor, rows: torch.Tensor, row_weights: torch.Tensor | None
) -> torch.Tensor:
    """Return the number of labels, or the sum of their weights; 1 if it would be 0."""
    if row_weights is None:
        return is_label.sum().clamp(min=1)
    total = (is_label * row_weights[rows]).sum()
    return torch.where(total > 0, total, 1.0)


def _logits_gradient(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return softmax - one-hot [K, V], the gradient of the summed loss, in the dtype of logits;
    each row times its weight of `weights` [K] if given.
    """
    slope = logits.float().softmax(dim=-1)
    index = targets.clamp(min=0).unsqueeze(-1)  # [K, 1]; ignored targets are zeroed below
    slope.scatter_add_(-1, index, slope.new_full((1, 1), -1.0).expand_as(index))
    factor = targets != IGNORE_INDEX if weights is None else (targets != IGNORE_INDEX) * weights
    return slope.mul_(factor.unsqueeze(-1)).to(logits.dtype)
