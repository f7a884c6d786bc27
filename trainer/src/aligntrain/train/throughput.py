"""How fast a run is: between two lines of metrics, and over all of it in one sentence."""

from dataclasses import dataclass
from typing import Any

from aligntrain.train.metrics import Flops, Sums


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
