"""Samples as the tensors of one micro-batch."""

from collections.abc import Sequence
from typing import TypedDict

import torch

from aligntrain.data.samples import Sample
from aligntrain.prompts.encode import IGNORED


class Batch(TypedDict):
    """A micro-batch of B rows of at most T tokens, padded on the right, with I images in all.

    `input_ids`, `attention_mask`, `labels` [B, T] int64; `pixel_values` [I, 3, H, W] float32 in
    reading order, None without images; `levels` [B] int64, 0 for rows that have none; `ids` [B].
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor | None
    levels: torch.Tensor
    ids: list[str]


def collate(samples: Sequence[Sample], pixels: Sequence[torch.Tensor], pad_id: int) -> Batch:
    """`samples` as a batch; `pixels` are their images [3, H, W] in reading order.

    Without any sample, the batch is one row of one token that is text and is not learned, so that
    a rank whose rows were all rejected still takes part in the step.
    """
    if not samples:
        samples = [Sample("", [pad_id], [IGNORED], [], 0, truncated=False)]
    size = len(samples), max(sample.length for sample in samples)
    input_ids = torch.full(size, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(size, dtype=torch.int64)
    labels = torch.full(size, IGNORED, dtype=torch.int64)
    for row, sample in enumerate(samples):
        input_ids[row, : sample.length] = torch.tensor(sample.ids)
        attention_mask[row, : sample.length] = 1
        labels[row, : sample.length] = torch.tensor(sample.labels)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        pixel_values=torch.stack(list(pixels)) if pixels else None,
        levels=torch.tensor([sample.level for sample in samples]),
        ids=[sample.id for sample in samples],
    )
