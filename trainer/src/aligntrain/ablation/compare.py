"""Means of variants over seeds, and differences from the baseline, paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aligntrain.evaluate.intervals import Interval, mean_interval
from aligntrain.evaluate.short_answers import ALL

LEAST_SEEDS = 3
"""Pairs needed to judge a difference: the interval of two is 12.7 standard errors to each side."""

LOSS = "validation loss"
RIGHT = "right, "
"""Prefix of a metric before the kind of question: the share of right answers."""
RIGHT_ALL = RIGHT + ALL
BASELINE = "baseline"
"""Verdict on the baseline itself."""


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

    @property
    def scale(self) -> int:
        """Factor of the values where they are shown: shares are shown in percent."""
        return 1 if self.lower_is_better else 100


def compare(metric: str, values: Mapping[str, Mapping[int, float]], baseline: str) -> Comparison:
    """Compare the variants that have `values`, by variant and seed, with `baseline`."""
    lower, base = metric == LOSS, values.get(baseline, {})
    lines: list[Line] = []
    for name in sorted(values, key=lambda name: name != baseline):
        own = dict(values[name])
        if not own:
            continue
        difference, verdict = None, BASELINE
        if name != baseline:
            paired = [value - base[seed] for seed, value in own.items() if seed in base]
            difference = mean_interval(paired) if paired else None
            verdict = _verdict(difference, lower=lower)
        lines.append(Line(name, own, mean_interval(list(own.values())), difference, verdict))
    return Comparison(metric, lower, lines)


def _verdict(difference: Interval | None, *, lower: bool) -> str:
    if difference is None:
        return "no seed of the baseline to compare with"
    if difference.count < LEAST_SEEDS:
        return "too few seeds to say"
    if difference.holds_zero:
        return "within noise"
    return "better" if (difference.mean < 0) == lower else "worse"


def expected_by_chance(comparisons: Sequence[Comparison]) -> float:
    """Return how many differences would be called better or worse by chance: one in twenty."""
    differences = [line.difference for comparison in comparisons for line in comparison.lines]
    return sum(one is not None and one.count >= LEAST_SEEDS for one in differences) / 20
