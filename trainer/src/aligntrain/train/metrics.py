"""Metrics of a run: sums over a step, and the lines of `metrics.jsonl`.

A line of `metrics.jsonl` is the mean over the steps since the line before, over all ranks:

    step                number of the step of the optimizer, from 1
    epoch               passes over the data
    loss                mean over the labelled tokens, weighted with `data.weight`
    loss_by_level       the same for each level present, by level
    learning_rate       of each group of parameters
    gradient_norm       of all gradients together, before clipping
    tokens_per_s        tokens read, images' included and padding not; of all ranks together
    samples_per_s       rows
    padding             share of positions computed by the LLM that hold no token
    data_wait_s         seconds per step waiting for data, mean over ranks
    step_s              seconds per step
    mfu                 model FLOPs per second as a share of the peak, on known GPUs
    gate_weights        mean weight of each local level in fine-tuning, lowest level first
    gate_entropy        mean entropy of these weights, in nats: ln(N - 1) is no preference

A line with `validation_loss` (and `validation_loss_by_level`, `validation_samples`) covers the
held-out rows after that step; null if not finite. After a step of the cooldown, whose `loss` is
without alignment vectors, it has `validation_loss_plain` too, without them, beside the others,
which stay comparable with those before.
"""

from dataclasses import dataclass
from typing import Any

import torch

from aligntrain.data.loader import Batch
from aligntrain.model.modeling import AlignGPTForConditionalGeneration, AlignGPTOutput
from aligntrain.train.phases import parameters_by_part, part_of

PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
}
"""Dense 16-bit FLOPs per second by part of the GPU's name (NVIDIA's data sheets); first match."""

_COUNTS = (
    "loss",
    "tokens",
    "places",
    "read",
    "scored",
    "rows",
    "images",
    "wait_s",
    "entropy",
    "gated",
    "steps",
    "seconds",
)


class Sums:
    """Sums over micro-batches, as one float64 vector that ranks can add up.

    `levels` is N. Losses are kept by level, 0 being rows without one. `tokens` are those with a
    label, times their weights.
    """

    def __init__(self, levels: int, device: torch.device) -> None:
        self._levels = levels
        self._at = {name: place for place, name in enumerate(_COUNTS)}
        sizes = (len(_COUNTS), levels + 1, levels + 1, levels - 1)
        self.vector = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        # Views of the vector: loss and tokens of each level, and weights of the gate.
        _, self._losses, self._tokens, self._weights = self.vector.split(sizes)

    @torch.no_grad()
    def add(self, batch: Batch, output: AlignGPTOutput, *, packed: bool = False) -> None:
        """Count the micro-batch `batch` and the model's `output`, of `packed` or padded rows."""
        assert output.sample_loss is not None and output.sample_tokens is not None  # it has labels
        tokens = output.sample_tokens.double()
        weights = batch["weights"]
        weighted = tokens if weights is None else tokens * weights.to(tokens.device)
        losses = output.sample_loss.double() * weighted
        mask, logits = batch["attention_mask"], output.logits
        values = {
            "loss": losses.sum(),
            "tokens": weighted.sum(),
            "places": mask.sum() if packed else mask.numel(),
            "read": mask.sum(),
            "scored": tokens.sum() if packed or logits is None else logits[..., 0].numel(),
            "rows": sum(bool(name) for name in batch["ids"]),
            "images": 0 if batch["pixel_values"] is None else len(batch["pixel_values"]),
        }
        for name, value in values.items():
            self.vector[self._at[name]] += value
        levels = batch["levels"].to(losses.device)
        levels = levels.masked_fill(levels > self._levels, 0)  # of another scale, and not used
        self._losses.index_add_(0, levels, losses)
        self._tokens.index_add_(0, levels, weighted)
        if output.gate_weights is not None:
            gate = output.gate_weights.double()
            rows = gate[gate.sum(dim=-1) > 0]  # rows without an image have none
            self._weights += rows.sum(dim=0)
            self.vector[self._at["entropy"]] -= torch.special.xlogy(rows, rows).sum()
            self.vector[self._at["gated"]] += len(rows)

    def reduce(self) -> None:
        """Replace by the sums over all ranks; all ranks call it."""
        torch.distributed.all_reduce(self.vector)

    def merge(self, other: "Sums") -> None:
        """Add the sums of another step."""
        self.vector += other.vector

    def __getitem__(self, name: str) -> float:
        return float(self.vector[self._at[name]])

    def __setitem__(self, name: str, value: float) -> None:
        self.vector[self._at[name]] = value

    @property
    def loss(self) -> float:
        """(Weighted) mean over labelled tokens; 0 without any."""
        return self["loss"] / (self["tokens"] or 1.0)

    @property
    def loss_by_level(self) -> dict[str, float]:
        """Mean loss of each level present."""
        sums = zip(self._losses.tolist(), self._tokens.tolist(), strict=True)
        return {
            str(level): loss / count for level, (loss, count) in enumerate(sums) if level and count
        }

    @property
    def gate(self) -> dict[str, Any]:
        """Mean weights and entropy of the gate, empty if it took no part."""
        rows = self["gated"]
        if not rows:
            return {}
        weights = (self._weights / rows).tolist()
        return {"gate_weights": weights, "gate_entropy": self["entropy"] / rows}


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating point operations of training, from the sizes of the model.

    A matrix of n parameters costs 2 n per token forward, as much for the gradient of its input,
    and as much again for its own gradient; scores and weighted sums of attention cost 4 L d T
    per token forward, twice that backward (Chowdhery et al. 2022, PaLM, appendix B).
    Recomputation by gradient checkpointing is not counted.
    """

    llm: int
    """Parameters of the LLM's layers."""
    head: int
    """Parameters of its head, which runs only at positions that predict a label."""
    llm_trains: bool
    attention: int
    """L d of the LLM."""
    vision: int
    vision_tokens: int
    """Patches read by the vision tower for an image, at all scales."""
    lora: int = 0
    """Parameters of LoRA, trained in place of the LLM's."""

    @classmethod
    def of(cls, model: AlignGPTForConditionalGeneration) -> "Flops":
        """Return the FLOPs of `model` with its current trainable parameters."""
        sizes = parameters_by_part(model)
        text = model.config.get_text_config()
        head = text.vocab_size * text.hidden_size
        tied = getattr(text, "tie_word_embeddings", False)
        return cls(
            llm=sizes["llm"] - (head if tied else 2 * head),  # embeddings are looked up
            head=head,
            llm_trains=any(
                p.requires_grad and part_of(name) == "llm" for name, p in model.named_parameters()
            ),
            attention=text.num_hidden_layers * text.hidden_size,
            vision=sizes["vision_tower"],
            vision_tokens=model.config.patches * model.config.tiles_per_image,
            lora=sizes["lora"],
        )

    def count(self, sums: Sums) -> float:
        """Return the FLOPs of all ranks for the counts in `sums`."""
        length = sums["read"] / max(sums["rows"], 1.0)
        passes = 6 if self.llm_trains else 4
        per_token = passes * self.llm + 6 * self.lora + 12 * self.attention * length
        return (
            per_token * sums["read"]
            + passes * self.head * sums["scored"]
            + 2 * self.vision * self.vision_tokens * sums["images"]
        )


def peak_flops(device: torch.device) -> float | None:
    """Return the peak 16-bit FLOPs per second of `device`; None on a CPU or unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates from sums; `peak` is the FLOPs per second of each of `ranks` GPUs, None if unknown."""

    ranks: int
    flops: Flops
    peak: float | None

    def over(self, sums: Sums) -> dict[str, float]:
        """Return the rates of the steps in `sums`, named as in `metrics.jsonl`."""
        steps, seconds = sums["steps"], sums["seconds"]
        rates = {
            "tokens_per_s": sums["read"] / seconds,
            "samples_per_s": sums["rows"] / seconds,
            "padding": 1 - sums["read"] / max(sums["places"], 1.0),
            "data_wait_s": sums["wait_s"] / (steps * self.ranks),
            "step_s": seconds / steps,
        }
        if self.peak is not None:
            rates["mfu"] = self.flops.count(sums) / seconds / (self.peak * self.ranks)
        return rates


def sentence(rates: dict[str, Any]) -> str:
    """Describe the result of `Speed.over` in a sentence."""
    parts = [f"{rates['tokens_per_s']:,.0f} tokens/s", f"{rates['samples_per_s']:,.1f} samples/s"]
    if "mfu" in rates:
        parts.append(f"MFU {rates['mfu']:.1%}")
    waiting = rates["data_wait_s"] / rates["step_s"]
    parts += [f"{rates['padding']:.1%} padding", f"{waiting:.1%} of the time waiting for data"]
    return ", ".join(parts)
