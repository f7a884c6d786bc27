"""Losses by own and by forced level; importing it loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aligntrain.gate.measure import SweepResult, Vector
    from aligntrain.gate.questions import GateQuestion


@dataclass(frozen=True, slots=True)
class OwnLevel:
    """Mean `losses` [N] of `count` pairs of `level` with each of N forced, in nats per caption.

    `mix` is that with the model's own mix.
    """

    level: int
    count: int
    losses: tuple[float, ...]
    mix: float


def loss_matrix(questions: Sequence[GateQuestion], swept: Sequence[SweepResult]) -> list[OwnLevel]:
    """Return the losses of the pairs `swept` by own level, then by forced level; [] without levels.

    The results' numbers are places in `questions`. A model that has learned its levels has its
    least losses near the diagonal.
    """
    by_level: dict[int, list[SweepResult]] = {}
    for result in swept:
        own = questions[result.number].level
        if own is not None:
            by_level.setdefault(own, []).append(result)

    def mean(results: Sequence[SweepResult], vector: Vector) -> float:
        return fmean(one.tokens * one.losses[vector] for one in results)

    def forced(results: Sequence[SweepResult]) -> tuple[float, ...]:
        levels = [level for level in results[0].losses if isinstance(level, int)]
        return tuple(mean(results, level) for level in sorted(levels))

    return [
        OwnLevel(own, len(results), forced(results), mean(results, None))
        for own, results in sorted(by_level.items())
    ]
