"""A second reading of AlignGPT, in plain PyTorch and one sample at a time.

Written from the description of the authors' code in the paper's section 3 and the public
repository's behaviour, without a line of `aligntrain.model`: ids with -200 for an image, 0-based
levels, concatenation instead of placeholders. Tests hold the model against it.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

IMAGE = -200
IGNORED = -100


@dataclass
class Oracle:
    """Weights by the names of the authors' files; the two towers are transformers' own."""

    weights: dict[str, torch.Tensor]
    vision_tower: nn.Module
    llm: nn.Module
    vocabulary: int
    feature_layer: int = -2


@dataclass
class Answer:
    loss: torch.Tensor
    logits: list[torch.Tensor]
    alphas: list[torch.Tensor | None] = field(default_factory=list)


def project(oracle: Oracle, image: torch.Tensor) -> torch.Tensor:
    """Image [3, H, W] to [L, d]."""
    with torch.no_grad():
        hidden = oracle.vision_tower(image[None], output_hidden_states=True).hidden_states
    patches = hidden[oracle.feature_layer][0, 1:]
    w = oracle.weights
    inner = patches @ w["mm_projector.0.weight"].T + w["mm_projector.0.bias"]
    inner = nn.functional.gelu(inner)
    return inner @ w["mm_projector.2.weight"].T + w["mm_projector.2.bias"]


def alpha_of(oracle: Oracle, image_tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Gate weights [N-1] of image tokens [L, d] and text embeddings [n, d]."""
    w = oracle.weights
    dots = image_tokens @ (text.sum(0) / (len(text) + 1e-8))
    inner = dots @ w["gated_weight_layer.mlp.0.weight"].T + w["gated_weight_layer.mlp.0.bias"]
    inner = nn.functional.gelu(inner)
    out = inner @ w["gated_weight_layer.mlp.2.weight"].T + w["gated_weight_layer.mlp.2.bias"]
    return torch.exp(out - out.max()) / torch.exp(out - out.max()).sum()


def sequence(
    oracle: Oracle,
    ids: list[int],
    labels: list[int],
    image: torch.Tensor | None,
    similarity: int | None,
) -> tuple[torch.Tensor, list[int], torch.Tensor | None]:
    """Embeddings [T, d] and labels of one sample, and its gate weights where the gate spoke."""
    table = oracle.weights.get("align_indicators.indicator_embs")
    embed = oracle.llm.get_input_embeddings()
    rows = [embed(torch.tensor([i])) if i != IMAGE else None for i in ids]
    if image is None:
        return torch.cat([row for row in rows if row is not None]), list(labels), None
    tokens = project(oracle, image)
    alpha = None
    if table is None:
        align = None
    elif similarity is not None:  # first stage: the level of the pair
        align = table[similarity]
    else:  # second stage: the gate, with every word of the sample but the first (BOS)
        text = torch.cat([row for row in rows[1:] if row is not None])
        alpha = alpha_of(oracle, tokens, text)
        align = table[-1]
        for i, weight in enumerate(alpha):
            align = align + weight * table[i]
    out, targets = [], []
    for position, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if row is None:
            out.append(tokens)
            targets += [IGNORED] * len(tokens)
        else:
            out.append(row)
            targets.append(label)
        if position == 0 and align is not None:
            out.append(align[None])
            targets.append(IGNORED)
    return torch.cat(out), targets, alpha


def forward(
    oracle: Oracle,
    samples: list[tuple[list[int], list[int], torch.Tensor | None, int | None]],
) -> Answer:
    """Loss and logits of a batch padded on the right with zeros."""
    built = [sequence(oracle, *sample) for sample in samples]
    longest = max(len(embeddings) for embeddings, _, _ in built)
    width = built[0][0].shape[1]
    batch, mask, targets = [], [], []
    for embeddings, labels, _ in built:
        missing = longest - len(embeddings)
        batch.append(torch.cat([embeddings, torch.zeros(missing, width)]))
        mask.append([1] * len(embeddings) + [0] * missing)
        targets.append(labels + [IGNORED] * missing)
    logits = oracle.llm(inputs_embeds=torch.stack(batch), attention_mask=torch.tensor(mask)).logits
    logits = logits[..., : oracle.vocabulary]  # an LLM has none for placeholders
    shifted = torch.tensor(targets)[:, 1:]
    loss = nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), shifted.reshape(-1), ignore_index=IGNORED
    )
    rows = [row[: len(built[i][0])] for i, row in enumerate(logits)]
    return Answer(loss, rows, [alpha for _, _, alpha in built])
