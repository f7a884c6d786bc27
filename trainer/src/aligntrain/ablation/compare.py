"""What variants came to: means over seeds, and differences from the baseline, paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aligntrain.evaluate.intervals import Interval, mean_interval
from aligntrain.evaluate.short_answers import ALL

LEAST_SEEDS = 3
"""Pairs of runs below which a difference is not judged: the interval of two is 12.7 standard errors
to each side.
"""

LOSS = "validation loss"
RIGHT = "right, "
"""Before the kind of question: the share of right answers."""
RIGHT_ALL = RIGHT + ALL

Values = Mapping[str, Mapping[int, float]]
"""Of each variant, the value of each seed that has one."""


@dataclass(frozen=True, slots=True)
class Line:
    """One variant: its `values` by seed, their mean, the mean `difference` from the baseline over
    the seeds that both have, and what that is worth.
    """

    variant: str
    values: dict[int, float]
    mean: Interval
    difference: Interval | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The variants by one `metric`, of which less or more is better; the baseline first."""

    metric: str
    lower_is_better: bool
    lines: list[Line]


def compare(metric: str, values: Values, baseline: str) -> Comparison:
    """Hold the variants in `values` against `baseline`; those without any value are left out."""
    lower = metric == LOSS
    base = values.get(baseline, {})
    order = sorted(values, key=lambda name: name != baseline)
    lines = [
        _line(name, dict(values[name]), base, baseline, lower=lower)
        for name in order
        if values[name]
    ]
    return Comparison(metric, lower, lines)


def _line(
    name: str,
    values: dict[int, float],
    base: Mapping[int, float],
    baseline: str,
    *,
    lower: bool,
) -> Line:
    mean = mean_interval(list(values.values()))
    if name == baseline:
        return Line(name, values, mean, None, "baseline")
    paired = [value - base[seed] for seed, value in values.items() if seed in base]
    if not paired:
        return Line(name, values, mean, None, "no seed of the baseline to compare with")
    difference = mean_interval(paired)
    return Line(name, values, mean, difference, _verdict(difference, lower=lower))


def _verdict(difference: Interval, *, lower: bool) -> str:
    if difference.count < LEAST_SEEDS:
        return "too few seeds to say"
    if difference.holds_zero:
        return "within noise"
    return "better" if (difference.mean < 0) == lower else "worse"


def expected_by_chance(comparisons: Sequence[Comparison]) -> float:
    """How many of the judged differences would be called better or worse if there were none: one in
    twenty.
    """
    judged = [
        line
        for comparison in comparisons
        for line in comparison.lines
        if line.difference is not None and line.difference.count >= LEAST_SEEDS
    ]
    return len(judged) / 20
