"""What a run records: sums over a step, and what the lines of metrics say.

A line of `metrics.jsonl` is the mean over the steps since the line before, over all ranks:

    step                number of the step of the optimizer, from 1
    epoch               how often the data has been seen
    loss                mean over the labelled tokens
    loss_by_level       the same for each level that occurred; its key is the level
    learning_rate       of each group of parameters
    gradient_norm       of all gradients together, before clipping
    tokens_per_s        tokens read, images' included and padding not; of all ranks together
    samples_per_s       rows
    padding             share of the places that the LLM computed and that hold no token
    data_wait_s         seconds a step in which a rank waited for its data, mean over ranks
    step_s              seconds a step
    mfu                 model FLOPs per second as a share of what the GPUs can do, on known ones
    gate_weights        mean weight of each local level in fine-tuning, lowest level first
    gate_entropy        mean entropy of these weights, in nats: ln(N - 1) is no preference

A line with `validation_loss` (and `validation_loss_by_level`, `validation_samples`) is that of the
held-out rows after that step; null where it is no finite number.
"""

from dataclasses import dataclass
from typing import Any

import torch

from aligntrain.train.phases import part_of

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
"""Dense 16-bit FLOPs per second by a part of the GPU's name, from NVIDIA's data sheets; the first
that fits counts.
"""

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
)


class Sums:
    """Sums over micro-batches, as one float64 vector that ranks can add up.

    `levels` is N. Losses are kept by level, 0 being rows without one.
    """

    def __init__(self, levels: int, device: torch.device) -> None:
        self._levels = levels
        self._at = {name: place for place, name in enumerate(_COUNTS)}
        size = len(_COUNTS) + 2 * (levels + 1) + (levels - 1)
        self.vector = torch.zeros(size, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, batch: Any, output: Any, *, packed: bool = False) -> None:
        """Count the micro-batch `batch` and the model's `output` for it, made of `packed` rows or
        padded ones.
        """
        tokens = output.sample_tokens.double()
        losses = output.sample_loss.double() * tokens
        mask = batch["attention_mask"]
        values = {
            "loss": losses.sum(),
            "tokens": tokens.sum(),
            "places": mask.sum() if packed else mask.numel(),
            "read": mask.sum(),
            "scored": tokens.sum() if packed else output.logits[..., 0].numel(),
            "rows": sum(bool(name) for name in batch["ids"]),
            "images": 0 if batch["pixel_values"] is None else len(batch["pixel_values"]),
        }
        for name, value in values.items():
            self.vector[self._at[name]] += value
        levels = batch["levels"].to(losses.device)
        levels = levels.masked_fill(levels > self._levels, 0)  # of another scale, and not used
        self._by_level(0).index_add_(0, levels, losses)
        self._by_level(1).index_add_(0, levels, tokens)
        if output.gate_weights is not None:
            self._add_gate(output.gate_weights.double())

    def _add_gate(self, weights: torch.Tensor) -> None:
        rows = weights[weights.sum(dim=-1) > 0]  # rows without an image have none
        self.vector[-(self._levels - 1) :] += rows.sum(dim=0)
        self.vector[self._at["entropy"]] -= torch.special.xlogy(rows, rows).sum()
        self.vector[self._at["gated"]] += len(rows)

    def _by_level(self, which: int) -> torch.Tensor:
        size = self._levels + 1
        first = len(_COUNTS) + which * size
        return self.vector[first : first + size]

    def reduce(self) -> "Sums":
        """Add up those of all ranks, on each of them; call it on all."""
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.vector)
        return self

    def merge(self, other: "Sums") -> None:
        """Add those of another step."""
        self.vector += other.vector

    def __getitem__(self, name: str) -> float:
        return float(self.vector[self._at[name]])

    def __setitem__(self, name: str, value: float) -> None:
        self.vector[self._at[name]] = value

    @property
    def loss(self) -> float:
        """Mean over labelled tokens; 0 without any."""
        return self["loss"] / max(self["tokens"], 1.0)

    @property
    def loss_by_level(self) -> dict[str, float]:
        """Mean loss of each level that occurred."""
        losses, tokens = self._by_level(0).tolist(), self._by_level(1).tolist()
        return {
            str(level): losses[level] / tokens[level]
            for level in range(1, self._levels + 1)
            if tokens[level]
        }

    @property
    def gate(self) -> dict[str, Any]:
        """Mean weights and entropy of the gate, empty where it did not speak."""
        rows = self["gated"]
        if not rows:
            return {}
        weights = (self.vector[-(self._levels - 1) :] / rows).tolist()
        return {"gate_weights": weights, "gate_entropy": self["entropy"] / rows}


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating point operations of training, from the sizes of the model.

    A matrix of n parameters costs 2 n per token forward, as much to pass gradients on, and as much
    again for its own gradient; scores and weighted sums of attention cost 4 L d T per token
    forward, twice that backward (Chowdhery et al. 2022, PaLM, appendix B). What gradient
    checkpointing computes twice counts once.
    """

    llm: int
    """Parameters of the LLM's layers."""
    head: int
    """Those of its head, which the loop asks only for positions behind which a label stands."""
    llm_trains: bool
    attention: int
    """L d of the LLM."""
    vision: int
    vision_tokens: int
    """That the vision tower reads for an image, of all scales."""
    lora: int = 0
    """Parameters of LoRA, which train where the LLM's do not."""

    @classmethod
    def of(cls, model: Any) -> "Flops":
        """Those of `model` as its parameters now train."""
        sizes = {"llm": 0, "vision_tower": 0, "lora": 0}
        trains = False
        for name, parameter in model.named_parameters():
            part = part_of(name)
            if part in sizes:
                sizes[part] += int(getattr(parameter, "ds_numel", parameter.numel()))
                trains |= part == "llm" and parameter.requires_grad
        text = model.config.get_text_config()
        head = text.vocab_size * text.hidden_size
        tied = getattr(text, "tie_word_embeddings", False)
        return cls(
            llm=sizes["llm"] - (head if tied else 2 * head),  # embeddings are looked up
            head=head,
            llm_trains=trains,
            attention=text.num_hidden_layers * text.hidden_size,
            vision=sizes["vision_tower"],
            vision_tokens=model.config.image_tokens * model.config.tiles_per_image,
            lora=sizes["lora"],
        )

    def count(self, sums: Sums) -> float:
        """Of all ranks, for what `sums` counts."""
        length = sums["read"] / max(sums["rows"], 1.0)
        passes = 6 if self.llm_trains else 4
        per_token = passes * self.llm + 6 * self.lora + 12 * self.attention * length
        return (
            per_token * sums["read"]
            + passes * self.head * sums["scored"]
            + 2 * self.vision * self.vision_tokens * sums["images"]
        )


def peak_flops(device: torch.device) -> float | None:
    """What the GPU `device` can do in a second in 16 bits; None on a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True, slots=True)
class Speed:
    """Turns sums into rates. `peak` is what the GPU of each of `ranks` can do in a second, None
    where that is not known.
    """

    ranks: int
    flops: Flops
    peak: float | None

    def over(self, sums: Sums, steps: int, seconds: float) -> dict[str, float]:
        """The rates of `steps` steps in `seconds`, as `metrics` names them."""
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
    """What `Speed.over` gave, for people."""
    parts = [f"{rates['tokens_per_s']:,.0f} tokens/s", f"{rates['samples_per_s']:,.1f} samples/s"]
    if "mfu" in rates:
        parts.append(f"MFU {rates['mfu']:.1%}")
    waiting = rates["data_wait_s"] / rates["step_s"]
    parts += [f"{rates['padding']:.1%} padding", f"{waiting:.1%} of the time waiting for data"]
    return ", ".join(parts)
