"""The alignment table and the gate that mixes its rows (PAPER.md, section Model).

Level k of 1..N is row k - 1 of the table; the top level N, the last row, is the global one, the
others are local.
"""

from typing import Any

import torch
from torch import nn

from aligntrain.model.configuration import AlignGPTConfig


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever its weights are stored in.

    The gate's inputs are unscaled dot products over the LLM's width, which overflow float16.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), weight, bias)


class AlignmentGate(nn.Sequential):
    """From the similarity of each image token and the text to weights of the N - 1 local rows.

    alpha = softmax(MLP(V t)), MLP = Linear(L, hidden), GELU, Linear(hidden, N - 1): equation 2 of
    the paper as the authors' code reads it. Its L inputs are positions in the image. Float32
    throughout.
    """

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__(
            Float32Linear(config.image_tokens, config.gate_hidden),
            nn.GELU(),
            Float32Linear(config.gate_hidden, config.levels - 1),
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Weights [B, N-1] float32 that sum to one, of similarities `input` [B, L] float32."""
        return super().forward(input).softmax(dim=-1)


class Alignment(nn.Module):
    """The table [N, d] and, where the mixing has one, the gate.

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
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The alignment vectors of a batch and the gate's weights.

        Args:
            similarities: [B, L] float32, what the gate reads (see `similarities`).
            levels: [B] int64, 1..N where that level's row is to be taken, anything where the
                vector will not be used; None mixes by `mixing`.
            gate_weights: [B, N-1], used in the place of the gate's own.

        Returns:
            Vectors [B, d] in the table's dtype, and the weights [B, N-1] float32 that mixed them,
            None where none did.
        """
        if levels is not None:
            vectors = self.table[(levels - 1).clamp(0, len(self.table) - 1)]
            # A gate that trains takes part in every batch, so that no rank waits for its gradient.
            if self.gate is not None and torch.is_grad_enabled() and _trains(self.gate):
                vectors = vectors + nothing(self.gate(similarities)).to(vectors.dtype)
            return vectors, None
        table = self.table.float()
        local_rows, top = table[:-1], table[-1:]
        weights = None
        if self.gate is None:
            mean = local_rows.mean(dim=0, keepdim=True)
            mixed = top if self.mixing == "global" else top + mean
            mixed = mixed.expand(len(similarities), -1)
        else:
            weights = self.gate(similarities) if gate_weights is None else gate_weights.float()
            mixed = weights @ local_rows
            if self.mixing == "adaptive":
                mixed = mixed + top
        return mixed.to(self.table.dtype), weights


def mean_text(embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean [B, d] float32 of `embeddings` [B, T, d] where `mask` [B, T] bool is set, else 0."""
    total = (embeddings * mask.unsqueeze(-1)).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def similarities(features: torch.Tensor, text: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Dot products [B, L] float32 of each row's image tokens with its mean text embedding.

    `features` [I, L, d] are the projected images, `text` [B, d] float32, `rows` [I] int64 the row
    that each image belongs to. A row with several images gets the mean over them, position by
    position: the gate is tied to the patch grid, and the mean keeps its inputs in the range that
    one image gives. A row without images gets zeros.
    """
    with torch.autocast(features.device.type, enabled=False):
        by_image = torch.einsum("ild,id->il", features.float(), text[rows].float())
    images = torch.zeros(len(text), dtype=torch.float32, device=features.device)
    images = images.index_add(0, rows, torch.ones_like(rows, dtype=torch.float32))
    total = by_image.new_zeros(len(text), by_image.shape[1]).index_add(0, rows, by_image)
    return total / images.clamp(min=1).unsqueeze(-1)


def nothing(tensor: torch.Tensor) -> torch.Tensor:
    """Zero that depends on `tensor`: adding it gives its parameters zero gradients, not none.

    It sums no element, so that no infinity in `tensor` can make it NaN.
    """
    return tensor.flatten()[:0].sum()


def _trains(module: nn.Module) -> bool:
    parameters: Any = module.parameters()
    return any(parameter.requires_grad for parameter in parameters)
