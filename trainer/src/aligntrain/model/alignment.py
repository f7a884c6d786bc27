"""Alignment vectors: the level table and the gate that mixes its rows.

Zhao et al. 2024, AlignGPT (arXiv 2405.14129), equations 2 and 3.

Level k of 1..N is row k - 1 of the table. The top level N, the last row, is the global one; the
others are local.

Letters in shapes: B rows, I images, L image tokens, T positions, N levels, d hidden size.
"""

import torch
from torch import nn

from aligntrain.model.configuration import AlignGPTConfig


class Float32Linear(nn.Linear):
    """Linear layer computing in float32, whatever the dtype of its weights.

    The gate's inputs are unscaled dot products over the LLM's width, which overflow float16.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), weight, bias)


class AlignmentGate(nn.Sequential):
    """Gate from image-text similarities to weights of the N - 1 local levels.

    alpha = softmax(MLP(V t)) with MLP = Linear(L, hidden), GELU, Linear(hidden, N - 1): equation 2
    of the paper as the authors' code reads it. The L inputs are positions in the image.
    """

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__(
            Float32Linear(config.image_tokens, config.gate_hidden),
            nn.GELU(),
            Float32Linear(config.gate_hidden, config.levels - 1),
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return weights [B, N-1] float32 that sum to 1, from similarities `input` [B, L]."""
        return super().forward(input).softmax(dim=-1)


class Alignment(nn.Module):
    """Level table [N, d] and, for the gated mixings, the gate.

    Parameters: `table`, `gate.0.{weight,bias}`, `gate.2.{weight,bias}`.
    """

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__()
        self.mixing = config.mixing
        self.table = nn.Parameter(torch.empty(config.levels, config.text_config.hidden_size))
        self.gate = AlignmentGate(config) if config.has_gate else None

    def forward(
        self,
        similarities: torch.Tensor,
        levels: torch.Tensor | None = None,
        gate_weights: torch.Tensor | None = None,
        *,
        some_are_mixed: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return one alignment vector per row, and the gate's weights.

        Args:
            similarities: [B, L] float32, the gate's input (see `similarities`).
            levels: [B] int64, 1..N: take this level's row of the table; any value in rows whose
                vector is not used. None mixes the rows by `mixing`.
            gate_weights: [B, N-1], used instead of the gate's own.
            some_are_mixed: rows of level 0 are mixed nevertheless.

        Returns:
            Vectors [B, d] in the table's dtype, and the weights [B, N-1] float32 that mixed them,
            or None if no gate took part.
        """
        if levels is None:
            return self._mix(similarities, gate_weights)
        # h_align = E[level] (pre-training, or a level forced by hand)
        vectors = self.table[(levels - 1).clamp(0, len(self.table) - 1)]
        if some_are_mixed:
            is_mixed = (levels == 0).unsqueeze(-1)  # [B, 1]
            mixed, weights = self._mix(similarities, gate_weights)
            return mixed.where(is_mixed, vectors), None if weights is None else weights * is_mixed
        # A trainable gate takes part in every batch, so that no rank waits for its gradient.
        if self.gate is not None and torch.is_grad_enabled() and is_trainable(self.gate):
            vectors = vectors + zero_term(self.gate(similarities)).to(vectors.dtype)
        return vectors, None

    def _mix(
        self, similarities: torch.Tensor, gate_weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # h_align = E_N + sum_i alpha_i E_i, i < N (equation 3), in float32
        table = self.table.float()
        local_rows, top = table[:-1], table[-1:]  # [N-1, d], [1, d]
        weights = None
        if self.gate is None:
            mean = local_rows.mean(dim=0, keepdim=True)
            mixed = top if self.mixing == "global" else top + mean
            mixed = mixed.expand(len(similarities), -1)
        else:
            weights = self.gate(similarities) if gate_weights is None else gate_weights.float()
            mixed = weights @ local_rows  # [B, N-1] @ [N-1, d]
            if self.mixing == "adaptive":
                mixed = mixed + top
        return mixed.to(self.table.dtype), weights


def mean_text(embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return t of equation 2: the mean [B, d] float32 of `embeddings` [B, T, d] over `mask`.

    `mask` is [B, T] bool; a row without any gets zeros.
    """
    total = (embeddings * mask.unsqueeze(-1)).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def similarities(features: torch.Tensor, text: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return V t of equation 2: dot products [B, L] float32 of image tokens and mean text.

    A row with several images gets the mean over them, position by position: the gate is tied to
    the patch grid, and the mean keeps its inputs in the range of a single image. A row without
    images gets zeros.

    Args:
        features: [I, L, d], the projected image tokens.
        text: [B, d] float32, from `mean_text`.
        rows: [I] int64, the row of each image.
    """
    with torch.autocast(features.device.type, enabled=False):
        per_image = torch.einsum("ild,id->il", features.float(), text[rows].float())
    images = torch.zeros(len(text), dtype=torch.float32, device=features.device)
    images = images.index_add(0, rows, torch.ones_like(rows, dtype=torch.float32))  # [B]
    total = per_image.new_zeros(len(text), per_image.shape[1]).index_add(0, rows, per_image)
    return total / images.clamp(min=1).unsqueeze(-1)


def zero_term(tensor: torch.Tensor) -> torch.Tensor:
    """Return a zero that depends on `tensor`, so that its parameters get zero gradients, not None.

    It sums an empty slice: an infinity in `tensor` cannot turn it into NaN.
    """
    return tensor.flatten()[:0].sum()


def is_trainable(module: nn.Module) -> bool:
    """Return whether any parameter of `module` is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())
