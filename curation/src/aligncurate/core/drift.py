"""Distances between two distributions, from counts in the same bins."""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def population_stability_index(base: Counts, other: Counts) -> float:
    """PSI = sum over bins of (q - p) ln(q / p), p and q the shares of `base` and `other` [b].

    This is the symmetric divergence of Jeffreys (1946), "An Invariant Form for the Prior
    Probability in Estimation Problems", named PSI by Siddiqi (2006), "Credit Risk Scorecards". A
    bin empty on one side counts as half a pair there, since the formula would be infinite; one
    empty on both sides adds nothing.

    Raises:
        ValueError: one side is empty.
    """
    _refuse_empty(base, other)
    filled = (base > 0) | (other > 0)
    p = np.maximum(base[filled], 0.5) / base.sum()
    q = np.maximum(other[filled], 0.5) / other.sum()
    return float(((q - p) * np.log(q / p)).sum())


def kolmogorov_smirnov(base: Counts, other: Counts) -> float:
    """Greatest difference of the two cumulative shares at the end of a bin.

    The distance of the underlying numbers is greater by at most one bin's share.

    Raises:
        ValueError: one side is empty.
    """
    _refuse_empty(base, other)
    difference = np.cumsum(other) / other.sum() - np.cumsum(base) / base.sum()
    return float(np.abs(difference).max())


def _refuse_empty(base: Counts, other: Counts) -> None:
    if not base.sum() or not other.sum():
        raise ValueError("an empty distribution has no distance from another")
