"""How far two distributions lie apart, from counts in the same bins."""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

PSI_SMALL, PSI_LARGE = 0.1, 0.25
"""Below the first a population is called stable, from the second on shifted (Siddiqi, chapter on
scorecard monitoring).
"""


def population_stability_index(base: Counts, other: Counts) -> float:
    """PSI = sum over bins of (q - p) ln(q / p), p and q the shares of `base` and `other` [b].

    It is the symmetric divergence of Jeffreys (1946), "An Invariant Form for the Prior Probability
    in Estimation Problems", under the name that Siddiqi (2006), "Credit Risk Scorecards", gives it.
    A bin that is empty on one side counts as half a pair there, since the formula would be
    infinite; one that is empty on both sides adds nothing.

    Raises:
        ValueError: one side is empty.
    """
    _refuse_empty(base, other)
    filled = (base > 0) | (other > 0)
    p = np.maximum(base[filled], 0.5) / base.sum()
    q = np.maximum(other[filled], 0.5) / other.sum()
    return float(((q - p) * np.log(q / p)).sum())


def kolmogorov_smirnov(base: Counts, other: Counts) -> float:
    """The greatest difference of the two cumulative shares at an end of a bin.

    It is exact there; the distance of the numbers themselves is greater by at most the share of one
    bin.

    Raises:
        ValueError: one side is empty.
    """
    return float(np.abs(_cumulative_difference(base, other)).max())


def wasserstein_1(base: Counts, other: Counts, width: float) -> float:
    """The area between the two cumulative shares: how far a pair's number moves on average, at the
    least, if one distribution is turned into the other; in the unit of `width`, that of a bin.

    Numbers lie within their bins as if at one place, so it is exact to within `width`.

    Raises:
        ValueError: one side is empty.
    """
    return float(np.abs(_cumulative_difference(base, other)).sum() * width)


def _cumulative_difference(base: Counts, other: Counts) -> npt.NDArray[np.float64]:
    _refuse_empty(base, other)
    return np.cumsum(other) / other.sum() - np.cumsum(base) / base.sum()


def _refuse_empty(base: Counts, other: Counts) -> None:
    if not base.sum() or not other.sum():
        raise ValueError("an empty distribution lies at no distance from another")
