"""95 % confidence intervals of means, shares and correlations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95

Values = npt.NDArray[np.float64]

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)

_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
)  # fmt: skip
"""0.975 quantiles of Student's t with 1 to 20 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean of `count` values with its 95 % interval; `low` and `high` are None below two values."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def holds_zero(self) -> bool | None:
        """Whether the interval contains 0; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Correlation:
    """Correlation of `count` pairs with its 95 % interval; `r` is None if one side is constant, the
    interval below four pairs.
    """

    r: float | None
    low: float | None
    high: float | None
    count: int


def t_quantile(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t with `degrees` of freedom, 1 or more.

    Beyond the table, the expansion of Abramowitz and Stegun, 26.7.5, is accurate to four places.
    """
    if degrees <= len(_T):
        return _T[degrees - 1]
    z, v = _Z, degrees
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of `values`, one or more, with Student's interval."""
    count, mean = len(values), fmean(values)
    if count < 2:
        return Interval(mean, None, None, count)
    half = t_quantile(count - 1) * stdev(values) / count**0.5
    return Interval(mean, mean - half, mean + half, count)


def share_interval(right: int, asked: int) -> Interval:
    """Return the share `right` / `asked`, `asked` at least 1, with Wilson's interval (1927)."""
    share, z = right / asked, _Z
    middle = (share + z**2 / (2 * asked)) / (1 + z**2 / asked)
    root = (share * (1 - share) / asked + z**2 / (4 * asked**2)) ** 0.5
    half = z * root / (1 + z**2 / asked)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), asked)


def pearson(x: Values, y: Values) -> Correlation:
    """Return Pearson's r of `x` [n] and `y` [n] with Fisher's z interval, error 1 / sqrt(n - 3)."""
    return _correlation(x, y, lambda _: 1.0)


def spearman(x: Values, y: Values) -> Correlation:
    """Return Spearman's rho of `x` [n] and `y` [n], ties at their mean rank.

    Fisher's z interval with error sqrt((1 + rho^2 / 2) / (n - 3)) (Bonett and Wright 2000).
    """
    return _correlation(ranks(x), ranks(y), lambda r: (1 + r**2 / 2) ** 0.5)


def ranks(values: Values) -> Values:
    """Return ranks [n] float64 of `values` [n], from 1; ties get their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _correlation(x: Values, y: Values, widening: Callable[[float], float]) -> Correlation:
    count = len(x)
    if count < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(None, None, None, count)
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    if count < 4:
        return Correlation(r, None, None, count)
    with np.errstate(divide="ignore"):
        middle, half = np.arctanh(r), _Z * widening(r) / (count - 3) ** 0.5
    return Correlation(r, float(np.tanh(middle - half)), float(np.tanh(middle + half)), count)
