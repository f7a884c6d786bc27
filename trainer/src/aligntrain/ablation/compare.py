"""Means of variants over seeds, and differences from the baseline, paired by seed."""

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
"""Prefix of a metric before the kind of question: the share of right answers."""
RIGHT_ALL = RIGHT + ALL

Values = Mapping[str, Mapping[int, float]]
"""Values by variant and seed."""


@dataclass(frozen=True, slots=True)
class Line:
    """One variant: `values` by seed, their mean, the mean `difference` from the baseline over the
    seeds of both, and the verdict on it.
    """

    variant: str
    values: dict[int, float]
    mean: Interval
    difference: Interval | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants by one `metric`, the baseline first."""

    metric: str
    lower_is_better: bool
    lines: list[Line]


def compare(metric: str, values: Values, baseline: str) -> Comparison:
    """Compare the variants in `values` with `baseline`; variants without a value are left out."""
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
    """Return how many of the judged differences would be called better or worse by chance alone:
    one in twenty.
    """
    judged = [
        line
        for comparison in comparisons
        for line in comparison.lines
        if line.difference is not None and line.difference.count >= LEAST_SEEDS
    ]
    return len(judged) / 20
