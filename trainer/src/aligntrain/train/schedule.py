"""How many steps a run has, and how the learning rate goes up and down over them.

Functions of the step alone: a resumed run needs no state of a scheduler.
"""

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]


def total_steps(max_steps: int | None, epochs: float, steps_per_epoch: int) -> int:
    """Steps of the optimizer: `max_steps`, or what `epochs` come to, rounded down; at least one."""
    return max_steps or max(1, int(epochs * steps_per_epoch))


def warmup_steps(total: int, ratio: float) -> int:
    """Steps in which the rate rises: `ratio` of all, rounded up as in transformers."""
    return min(math.ceil(total * ratio), total)


def rate_factor(step: int, total: int, warmup_ratio: float, schedule: Schedule) -> float:
    """By what the highest learning rate is multiplied in step `step` of 0..`total` - 1.

    It rises in equal parts from 1 / (warm-up + 1) to 1, then stays there (`constant`) or falls to 0
    along a half cosine, which it would reach in step `total` (Loshchilov and Hutter 2017, without
    restarts). transformers begins at 0 instead, so that a run's first step teaches nothing.

    Raises:
        ValueError: there is no such step.
    """
    if not 0 <= step < total:
        raise ValueError(f"there is no step {step} among {total}")
    warmup = warmup_steps(total, warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
