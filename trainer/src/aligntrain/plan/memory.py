"""How much memory a GPU needs for a step, by formula.

Model states are those of the ZeRO paper (Rajbhandari et al. 2020, arXiv 1910.02054, sections 3.1
and 5.1 to 5.3), where P parameters in mixed precision take 2 P bytes of weights, 2 P of gradients
and 12 P of optimizer states (a float32 copy, Adam's momentum and variance), of N GPUs each:

    zero_stage 0   2 P + 2 P + 12 P
               1   2 P + 2 P + 12 P / N
               2   2 P + (2 P + 12 P) / N
               3   (2 P + 2 P + 12 P) / N

Parameters that do not train have weights only, and those that QLoRA holds in 4 bits half a byte
each and 0.127 bits of scales: one of 8 bits for 64 weights, and of these one of 32 for 256
(Dettmers et al. 2023, arXiv 2305.14314, section 3). In float32 weights and gradients
take 4 P, and Adam 8 P: there is no copy with zero_stage 0, but DeepSpeed makes one with the others.

Activations are counted from what autograd keeps of one transformer layer, as Korthikanti et al.
2022 (arXiv 2205.05198, section 4) do for GPT, here for layers of today: float32 norms, rotary
embeddings, a gated MLP, attention that keeps no [T, T] matrix. With gradient checkpointing the
input of every layer stays, and one layer's activations at a time. LoRA keeps what its matrices
read, of a layer that does not train itself.

A step has its peak where the loss is computed, or where its backward begins or ends: on the way
down gradients come as activations go.

Not counted: the CUDA context (about half a GB), buffers of communication, the matrix that QLoRA
unpacks for its turn, what the allocator loses.
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
"""Matrices that read what another one reads."""


@dataclass(frozen=True, slots=True)
class States:
    """Bytes of the model's states on one GPU, and of those on the host for one GPU."""

    weights: int
    gradients: int
    optimizer: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the GPU."""
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
    """What `parameters`, of which `trainable` train and `quantized` are in 4 bits, take with ZeRO
    on `gpus` GPUs.

    Offloading moves optimizer states, and gradients where they are spread, to the host (Ren et al.
    2021, ZeRO-Offload, arXiv 2101.06840, section 4); `all` weights too.
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
        host, optimizer = host + optimizer, 0
        if zero_stage >= 2:
            host, gradients = host + gradients, 0
    if offload == "all":
        host, weights = host + weights, 0
    return States(weights, gradients, optimizer, host)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of an LLM: `width` of the stream, `attention` of all heads together, `mlp` within."""

    layers: int
    width: int
    attention: int
    mlp: int
    gated: bool
    vocabulary: int

    @classmethod
    def of(cls, config: Any, *, gated: bool) -> "Shape":
        """Of a causal LM's configuration; its MLP is four times its width if it does not say."""
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


def layer_activations(shape: Shape, *, precision: Precision, trains: bool) -> int:
    """Bytes that autograd keeps per token of one layer of an LLM.

    Kept whether it trains or not: both norms' inputs in float32; queries, keys (repeated to all
    heads), values and the result of attention; what the MLP's activation reads and gives, and for a
    gate what it is multiplied with. A layer that trains keeps the inputs of its matrices and of the
    norms' weights too.
    """
    size = _BYTES[precision]
    values = 4 * shape.attention + (3 if shape.gated else 1) * shape.mlp
    if trains:
        values += 4 * shape.width + shape.attention + shape.mlp
    return size * values + 2 * 4 * shape.width


def lora_activations(
    reads: Mapping[str, int], rank: int, *, precision: Precision, dropout: bool
) -> int:
    """Bytes that autograd keeps per token of one layer for its LoRA.

    `reads` has how many features each of its matrices reads, by the matrices' names. Kept are what
    A reads, once for matrices that read the same, and what B reads; with dropout each A reads
    something of its own, and a byte says of every feature whether it was dropped.
    """
    size = _BYTES[precision]
    kept = size * rank * len(reads)
    if dropout:
        return kept + (size + 1) * sum(reads.values())
    once = {_READ_THE_SAME.get(name, name): width for name, width in reads.items()}
    return kept + size * sum(once.values())


@dataclass(frozen=True, slots=True)
class Working:
    """Bytes that a micro-batch takes on one GPU beside the model's states.

    `kept` is what autograd keeps of the LLM until its backward, `layer` what it keeps of one layer
    in full, `logits` what the loss takes; `tower` what the vision tower takes while it reads the
    pictures, which is free again before the LLM works.
    """

    kept: int
    layer: int
    logits: int
    tower: int

    def peak(self, states: States, *, gradients_stay: bool, checkpointing: bool) -> int:
        """What a step takes at most with `states`.

        `gradients_stay` says that they are there before the backward: of earlier micro-batches, or
        because ZeRO-3 never frees them. In the backward a layer takes as much again for the
        gradients of what it keeps, and with `checkpointing` also for what is computed anew.
        """
        before = states.total - (0 if gradients_stay else states.gradients)
        begins = self.kept + (2 if checkpointing else 1) * self.layer
        return max(
            before + max(self.tower, self.kept + self.logits, begins),
            states.total + 2 * self.layer,
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
    """Bytes that autograd keeps of the LLM for a micro-batch of `tokens` tokens, without logits.

    `lora` are those of LoRA per token of one layer.
    """
    if checkpointing:
        return tokens * shape.layers * _BYTES[precision] * shape.width
    return (
        tokens
        * shape.layers
        * (layer_activations(shape, precision=precision, trains=trains) + lora)
    )


def logits(shape: Shape, tokens: int, *, precision: Precision, pieces: bool) -> int:
    """Bytes of the scores over the vocabulary and of the loss of `tokens` tokens at once, at its
    peak.

    There are the scores, and in float32 their log-softmax and going backward the gradients of both;
    where they are computed in `pieces` the scores in float32 and their gradient alone.
    """
    size = _BYTES[precision]
    if pieces:
        return shape.vocabulary * tokens * (size + 4 * (1 if precision == "fp32" else 2))
    return shape.vocabulary * tokens * (size + 3 * 4)


def _spread(size: int, gpus: int) -> int:
    return -(-size // gpus)
