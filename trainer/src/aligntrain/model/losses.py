"""The loss of next-token prediction, for the batch and for each of its rows."""

import torch
from torch import nn

from aligntrain.model.packing import Packing

IGNORED = -100

Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def predicting_places(labels: torch.Tensor) -> torch.Tensor:
    """The positions [K] int64, of any row of `labels` [B, T], behind which a label stands.

    Logits of other positions are of no use to the loss. K is 1 at least.
    """
    places = (labels[:, 1:] != IGNORED).any(dim=0).nonzero()[:, 0]
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
    wanted = targets != IGNORED
    rows = wanted.nonzero()[:, 0]
    losses = nn.functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
    return _of_rows(losses.sum(), losses, torch.ones_like(rows), rows, len(labels), items)


def packed_targets(packing: Packing, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each of the S packed tokens is to predict [S] int64, and the places [K] of those that
    are to predict something; K is 1 at least.
    """
    targets = packing.rows(_next_tokens(labels))[0]
    places = (targets != IGNORED).nonzero()[:, 0]
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
    wanted = targets[places] != IGNORED
    return _of_rows(total, losses, wanted, packing.row[places], len(packing.places), items)


def _next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """What each place of `labels` [B, T] is to predict, IGNORED where nothing."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


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
