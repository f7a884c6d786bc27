"""The loss of next-token prediction, for the batch and for each of its rows."""

from typing import Any

import torch
from torch import nn

from aligntrain.model.packing import Packing
from aligntrain.prompts.placeholders import IGNORE_INDEX

Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def label_positions(labels: torch.Tensor) -> torch.Tensor:
    """The positions [K] int64, of any row of `labels` [B, T], behind which a label stands.

    Logits of other positions are of no use to the loss. K is 1 at least.
    """
    places = (labels[:, 1:] != IGNORE_INDEX).any(dim=0).nonzero()[:, 0]
    return places if len(places) else places.new_zeros(1)


def next_token_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    items: int | torch.Tensor | None = None,
    places: torch.Tensor | None = None,
) -> Losses:
    """Cross-entropy of `logits` [B, T, V] against `labels` [B, T] one position later.

    `places` [K] int64 says of which positions the logits are, where they are [B, K, V]. Only
    labelled positions are raised to float32, so that the places of an image cost nothing.

    Returns:
        The sum divided by `items` (by default the number of labelled tokens: their mean), the mean
        [B] float32 of each row, detached and 0 where it has no label, and the number of labels
        [B] int64.
    """
    targets = _next_tokens(labels)
    if places is not None:
        targets = targets[:, places]
    wanted = targets != IGNORE_INDEX
    rows = wanted.nonzero()[:, 0]
    losses = nn.functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
    return _of_rows(losses.sum(), losses, torch.ones_like(rows), rows, len(labels), items)


def packed_targets(packing: Packing, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each of the S packed tokens is to predict [S] int64, and the places [K] of those that
    are to predict something; K is 1 at least.
    """
    targets = packing.rows(_next_tokens(labels))[0]
    places = (targets != IGNORE_INDEX).nonzero()[:, 0]
    return targets, places if len(places) else places.new_zeros(1)


def packed_losses(
    total: torch.Tensor,
    losses: torch.Tensor,
    packing: Packing,
    targets: torch.Tensor,
    places: torch.Tensor,
    items: int | torch.Tensor | None = None,
) -> Losses:
    """As `next_token_losses`, of `losses` [K] at the `places` that `packed_targets` gave, and their
    sum `total`, which carries the gradient.
    """
    wanted = targets[places] != IGNORE_INDEX
    return _of_rows(total, losses, wanted, packing.row[places], len(packing.places), items)


def _next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """What each place of `labels` [B, T] is to predict, IGNORE_INDEX where nothing."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def _of_rows(
    total: torch.Tensor,
    losses: torch.Tensor,
    wanted: torch.Tensor,
    rows: torch.Tensor,
    batch: int,
    items: int | torch.Tensor | None = None,
) -> Losses:
    """What `next_token_losses` returns, of `losses` [K] and their sum `total`, 0 where they are not
    `wanted` [K], which belong to `rows` [K] of `batch` rows in all.
    """
    tokens = rows.new_zeros(batch).index_add(0, rows, wanted.long())
    summed = losses.new_zeros(batch).index_add(0, rows, losses.detach())
    divisor = tokens.sum().clamp(min=1) if items is None else items
    return total / divisor, summed / tokens.clamp(min=1), tokens


_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""What configurations call that which some LLMs do with logits behind their head."""


def rows_per_chunk(vocabulary: int, most_bytes: int) -> int:
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


def token_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [K] float32 of `logits` [K, V], 0 where `targets` [K] are IGNORE_INDEX."""
    return nn.functional.cross_entropy(
        logits.float(), targets, reduction="none", ignore_index=IGNORE_INDEX
    )


def chunked_cross_entropy(
    hidden: torch.Tensor, targets: torch.Tensor, language_model: Any, most_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of what `token_cross_entropy` would give of the logits behind `hidden` [K, d], and the
    losses [K] themselves, detached; no more than `most_bytes` of logits are ever there.
    """
    head = language_model.get_output_embeddings()
    vocabulary = int(language_model.config.get_text_config().vocab_size)
    rows = rows_per_chunk(vocabulary, most_bytes)
    losses: list[torch.Tensor] = []

    def summed(given: torch.Tensor) -> torch.Tensor:
        return ChunkedLinearCrossEntropy.apply(given, head.weight, head.bias, targets, rows, losses)  # pyright: ignore

    # By a call of the head itself, since under ZeRO-3 it has its weights only while it runs.
    head.forward = summed
    try:
        total = head(hidden)
    finally:
        del head.forward
    return total, torch.cat(losses)


class ChunkedLinearCrossEntropy(torch.autograd.Function):
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
            losses.append(token_cross_entropy(logits, targets[part]))
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
    wanted = targets != IGNORE_INDEX
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
