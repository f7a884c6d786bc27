"""Memory of a training step on one GPU, by formula.

Model states are those of the ZeRO paper (Rajbhandari et al. 2020, arXiv 1910.02054, sections 3.1
and 5.1 to 5.3), where P parameters in mixed precision take 2 P bytes of weights, 2 P of gradients
and 12 P of optimizer states (a float32 copy, Adam's momentum and variance), on N GPUs each:

    zero_stage 0   2 P + 2 P + 12 P
               1   2 P + 2 P + 12 P / N
               2   2 P + (2 P + 12 P) / N
               3   (2 P + 2 P + 12 P) / N

Frozen parameters have weights only; in QLoRA's 4 bits, half a byte each and 0.127 bits of scales:
one of 8 bits for 64 weights, and one of 32 bits for 256 of these (Dettmers et al. 2023, arXiv
2305.14314, section 3). In float32, weights and gradients take 4 P, and Adam 8 P: there is no copy
with zero_stage 0, but DeepSpeed makes one with the others.

Activations are those that autograd keeps of one transformer layer, as Korthikanti et al. 2022
(arXiv 2205.05198, section 4) count them for GPT, here for current layers: float32 norms, rotary
embeddings, a gated MLP, attention without a stored [T, T] matrix. With gradient checkpointing the
input of every layer is kept, and one layer's activations at a time. LoRA keeps the inputs of its
matrices, also in an otherwise frozen layer.

A step has its peak at the loss, or at the beginning or end of its backward: gradients come as
activations go.

Not counted: the CUDA context (about half a GB), communication buffers, the matrix that QLoRA
currently unpacks, allocator overhead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aligntrain.recipes.schema import Offload, Precision

_BYTES: dict[Precision, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
_FOUR_BITS = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a weight in NF4 with double quantization."""
_ADAM, _COPY = 8, 4

_READ_THE_SAME = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Matrices with the same input as another one."""


@dataclass(frozen=True, slots=True)
class States:
    """Bytes of the model's states on one GPU, and on the host for one GPU."""

    weights: int
    gradients: int
    optimizer: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return self.weights + self.gradients + self.optimizer


def model_states(
    parameters: int,
    trainable: int,
    *,
    zero_stage: int,
    gpus: int,
    precision: Precision,
    offload: Offload = "none",
    quantized: int = 0,
) -> States:
    """Return the states of `parameters`, `trainable` of them trained and `quantized` in 4 bits,
    with ZeRO on `gpus` GPUs.

    Offloading moves optimizer states, and partitioned gradients, to the host (Ren et al. 2021,
    ZeRO-Offload, arXiv 2101.06840, section 4); `all` moves weights too.
    """
    size = _BYTES[precision]
    held = size * (parameters - quantized) + round(_FOUR_BITS * quantized)
    weights = _spread(held, gpus if zero_stage >= 3 else 1)
    gradients = _spread(size * trainable, gpus if zero_stage >= 2 else 1)
    copied = precision != "fp32" or zero_stage >= 1
    kept = (_ADAM + _COPY * copied) * trainable
    optimizer = _spread(kept, gpus if zero_stage >= 1 else 1)
    host = 0
    if offload != "none":
        host, optimizer = optimizer, 0
        if zero_stage >= 2:
            host, gradients = host + gradients, 0
    if offload == "all":
        host, weights = host + weights, 0
    return States(weights, gradients, optimizer, host)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of an LLM: `width` of the residual stream, `attention` of all heads, `mlp` inside."""

    layers: int
    width: int
    attention: int
    mlp: int
    gated: bool
    vocabulary: int

    @classmethod
    def of(cls, config: Any, *, gated: bool) -> "Shape":
        """Return the shape for a causal LM's config; the MLP defaults to 4 times the width."""
        width, heads = int(config.hidden_size), int(config.num_attention_heads)
        head = getattr(config, "head_dim", None) or width // heads
        return cls(
            layers=int(config.num_hidden_layers),
            width=width,
            attention=heads * int(head),
            mlp=int(getattr(config, "intermediate_size", None) or 4 * width),
            gated=gated,
            vocabulary=int(config.vocab_size),
        )


def lora_activations(
    reads: Mapping[str, int], rank: int, *, precision: Precision, dropout: bool
) -> int:
    """Return the bytes that autograd keeps per token of one layer for its LoRA.

    `reads` maps names of its matrices to their input features. Kept are the inputs of A, once
    for matrices with the same input, and of B; with dropout each A has its own input, and a
    dropout mask of one byte per feature.
    """
    size = _BYTES[precision]
    kept = size * rank * len(reads)
    if dropout:
        return kept + (size + 1) * sum(reads.values())
    once = {_READ_THE_SAME.get(name, name): width for name, width in reads.items()}
    return kept + size * sum(once.values())


@dataclass(frozen=True, slots=True)
class Working:
    """Bytes of a micro-batch on one GPU beside the model's states.

    `kept` is autograd's memory of the LLM until its backward, `layer` that of one layer in full,
    `logits` the loss's; `tower` is the vision tower's while it reads the images, freed before
    the LLM runs.
    """

    kept: int
    layer: int
    logits: int
    tower: int

    def peak(self, states: States, *, gradients_stay: bool, checkpointing: bool) -> int:
        """Return the peak bytes of a step with `states`.

        `gradients_stay`: they exist before the backward, from earlier micro-batches or because
        ZeRO-3 never frees them. In the backward a layer takes as much again for the gradients of
        its activations, and with `checkpointing` also for recomputation.
        """
        before = states.total - (0 if gradients_stay else states.gradients)
        begins = self.kept + (2 if checkpointing else 1) * self.layer
        return max(
            before + max(self.tower, self.kept + self.logits, begins), states.total + 2 * self.layer
        )


def activations(
    shape: Shape,
    tokens: int,
    *,
    precision: Precision,
    trains: bool,
    checkpointing: bool,
    lora: int = 0,
) -> int:
    """Return the bytes that autograd keeps of the LLM for `tokens` tokens, without logits.

    Kept in any case: both norms' inputs in float32; queries, keys (repeated to all heads),
    values and the output of attention; the input of the MLP's activation and, with a gate, both
    factors of the product. A trained layer also keeps the inputs of its matrices and of the
    norms' weights. `lora` are those of LoRA per token of one layer. With `checkpointing`, only the
    input of every layer is kept.
    """
    size = _BYTES[precision]
    if checkpointing:
        return tokens * shape.layers * size * shape.width
    values = 4 * shape.attention + (3 if shape.gated else 1) * shape.mlp
    if trains:
        values += 4 * shape.width + shape.attention + shape.mlp
    return tokens * shape.layers * (size * values + 2 * 4 * shape.width + lora)


def logits(shape: Shape, tokens: int, *, precision: Precision, pieces: bool) -> int:
    """Return the peak bytes of logits and loss for `tokens` tokens at once.

    Logits, their float32 log-softmax and, in the backward, the gradients of both; computed in
    `pieces`, only the float32 logits and their gradient.
    """
    size = _BYTES[precision]
    if pieces:
        return shape.vocabulary * tokens * (size + 4 * (1 if precision == "fp32" else 2))
    return shape.vocabulary * tokens * (size + 3 * 4)


def _spread(size: int, gpus: int) -> int:
    return -(-size // gpus)
