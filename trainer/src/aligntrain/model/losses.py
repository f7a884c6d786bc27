"""The loss of next-token prediction, for the batch and for each of its rows."""

import torch
from torch import nn

IGNORED = -100


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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy of `logits` [B, T, V] against `labels` [B, T] one position later.

    `places` [K] int64 says of which positions the logits are, where they are [B, K, V]. Only
    labelled positions are raised to float32, so that the places of an image cost nothing.

    Returns:
        The sum divided by `items` (by default the number of labelled tokens: their mean), the mean
        [B] float32 of each row, detached and 0 where it has no label, and the number of labels
        [B] int64.
    """
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    if places is not None:
        targets = targets[:, places]
    wanted = targets != IGNORED
    losses = nn.functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
    tokens = wanted.sum(dim=1)
    rows = wanted.nonzero()[:, 0]
    summed = losses.new_zeros(len(labels)).index_add(0, rows, losses.detach())
    divisor = tokens.sum().clamp(min=1) if items is None else items
    return losses.sum() / divisor, summed / tokens.clamp(min=1), tokens
