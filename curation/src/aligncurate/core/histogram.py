"""Histograms of scores and of sizes, mergeable, and distances between two distributions."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from aligncurate.core.moments import Moment, Moments

_DIGITS = 4
_FINE_BINS = 20_000
_PER_UNIT = _FINE_BINS // 2
"""Fine bins per unit of score in [-1, 1]: 10^_DIGITS, so that bins of 0.001, 0.002, 0.005, ... are
exact multiples.
"""

BIN_WIDTH = 1 / _PER_UNIT
"""Width of a fine bin of scores in [-1, 1]."""

_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
"""Bin widths in fine bins: each divides 20,000 and has round ends."""

_PER_OCTAVE = 16
_OCTAVES = 32

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bins:
    """Counts [b] int64 of scores in equally wide bins between `ends` [b+1] float64."""

    ends: npt.NDArray[np.float64]
    counts: Counts

    @property
    def width(self) -> float:
        """Width of a bin, in units of score."""
        return float(f"{self.ends[1] - self.ends[0]:.4g}")  # a round number


class _Counted:
    """Counts of numbers in fixed bins, with their exact moments, in constant memory.

    `counts` [bins] do not depend on the order of the numbers or on how they are parted.
    """

    bins_in_all: ClassVar[int]

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(self.bins_in_all, dtype=np.int64)
        self._moments = Moments()

    def _count(self, bins: npt.NDArray[np.int64], numbers: npt.NDArray[Any]) -> None:
        last = self.bins_in_all - 1
        self.counts += np.bincount(np.clip(bins, 0, last), minlength=self.bins_in_all)
        self._moments.add(numbers)

    def merge(self, other: Self) -> None:
        """Add the counts of another part."""
        self.counts += other.counts
        self._moments.merge(other._moments)

    @property
    def moment(self) -> Moment:
        """Count, mean, standard deviation, minimum and maximum."""
        return self._moments[0]

    def to_json(self) -> dict[str, Any]:
        """Counts of non-empty bins, and the moments; exact when read back."""
        filled = np.flatnonzero(self.counts)
        return {
            "moments": self._moments.to_json(),
            "bins": filled.tolist(),
            "counts": self.counts[filled].tolist(),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Restore from the output of `to_json`.

        Raises:
            KeyError, TypeError, ValueError, IndexError: invalid data.
        """
        restored = cls(*cls._arguments(fields))
        restored._moments = Moments.from_json(fields["moments"])
        at = np.asarray(fields["bins"], dtype=np.int64)
        counts = np.asarray(fields["counts"], dtype=np.int64)
        if at.shape != counts.shape or (counts < 0).any() or (at < 0).any():
            raise ValueError("bins and their counts do not fit each other")
        restored.counts[at] = counts
        return restored

    @classmethod
    def _arguments(cls, fields: dict[str, Any]) -> tuple[int, ...]:
        """Arguments of the constructor in the output of `to_json`."""
        return ()


class Histogram(_Counted):
    """Counts of float32 scores in 20,000 bins over [-1, 1], each 0.0001 wide; of the numbers of
    another column over [-10^`power`, 10^`power`].
    """

    bins_in_all = _FINE_BINS

    def __init__(self, power: int = 0) -> None:
        super().__init__()
        self.power = power

    @classmethod
    def around(cls, greatest: float) -> Self:
        """Return an empty histogram of numbers of which none is further from 0 than `greatest`."""
        return cls(math.ceil(math.log10(greatest)) if greatest > 0 else 0)

    @property
    def _per_unit(self) -> float:
        """Fine bins per unit of score."""
        return 10.0 ** (_DIGITS - self.power)

    def add(self, scores: npt.NDArray[np.float32]) -> None:
        """Count the finite `scores` [n]; those beyond the range go to the outermost bin."""
        finite = scores[np.isfinite(scores)].astype(np.float64)
        if len(finite):
            # A float32 times 10,000 is exact in float64, so each score gets its true bin.
            bins = np.floor(np.clip(finite * self._per_unit, -_PER_UNIT, _PER_UNIT))
            self._count(bins.astype(np.int64) + _PER_UNIT, finite)

    def widened(self, power: int) -> Self:
        """Return these counts in the bins of a histogram of `power`, at least this one's."""
        wide = type(self)(power)
        at = (np.arange(_FINE_BINS) - _PER_UNIT) // 10 ** (power - self.power) + _PER_UNIT
        np.add.at(wide.counts, at, self.counts)
        wide._moments.merge(self._moments)
        return wide

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | ({"power": self.power} if self.power else {})

    @classmethod
    def _arguments(cls, fields: dict[str, Any]) -> tuple[int, ...]:
        return (int(fields.get("power", 0)),)

    @property
    def count(self) -> int:
        """Number of scores counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean score; NaN if empty."""
        mean = self.moment.mean
        return np.nan if mean is None else mean

    def quantile(self, share: float) -> float:
        """Score below which `share` of the scores are, to within one fine bin.

        Raises:
            ValueError: no score was counted.
        """
        if not self.count:
            raise ValueError("an empty histogram has no quantiles")
        at = int(np.searchsorted(np.cumsum(self.counts), share * self.count))
        middle = (min(at, _FINE_BINS - 1) + 0.5 - _PER_UNIT) / self._per_unit
        return float(np.clip(middle, self.moment.min, self.moment.max))

    def bins(self, at_most: int = 80, beside: Self | None = None) -> Bins:
        """At most `at_most` (at least 1) bins with round ends over the range of the scores and
        of those of `beside`, of the same power, so that both have the same bins.

        Raises:
            ValueError: no score was counted.
        """
        if not self.count:
            raise ValueError("an empty histogram has no bins")
        filled = np.flatnonzero(self.counts if beside is None else self.counts + beside.counts)
        first, last = int(filled[0]), int(filled[-1])
        step = next(s for s in _STEPS if last // s - first // s < at_most)
        start, stop = first // step * step, (last // step + 1) * step
        ends = (np.arange(start, stop + 1, step) - _PER_UNIT) / self._per_unit
        return Bins(
            np.round(ends, _DIGITS - self.power),
            self.counts[start:stop].reshape(-1, step).sum(axis=1),
        )


class LogHistogram(_Counted):
    """Counts in 16 bins per power of two.

    Each number below 32 has its own bin; larger ones share a bin with numbers at most 1/16
    greater.
    """

    bins_in_all = 1 + _PER_OCTAVE * _OCTAVES

    def add(self, sizes: npt.NDArray[Any]) -> None:
        """Count `sizes` [n], integers from 0 to 2^32."""
        if len(sizes):
            mantissa, exponent = np.frexp(np.maximum(sizes, 0).astype(np.float64))
            within = np.floor((2 * mantissa - 1) * _PER_OCTAVE).astype(np.int64)
            at = np.where(mantissa > 0, 1 + (exponent - 1) * _PER_OCTAVE + within, 0)
            self._count(at, sizes)

    @property
    def median(self) -> int | None:
        """Median, to within its bin; None if empty."""
        total = int(self.counts.sum())
        if not total:
            return None
        at = int(np.searchsorted(np.cumsum(self.counts), total / 2))
        octave, step = divmod(at - 1, _PER_OCTAVE)
        least = 0.0 if at == 0 else 2.0**octave * (1 + step / _PER_OCTAVE)
        return int(np.ceil(least))


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
