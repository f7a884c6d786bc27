"""Histograms of scores and of integers of any size, built batch by batch and mergeable."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from aligncurate.core.moments import Moment, Moments

_FINE_BINS = 20_000
_PER_UNIT = _FINE_BINS // 2
"""Fine bins per unit of score: a power of ten, so that bins of 0.001, 0.002, 0.005, ... are exact
multiples.
"""

BIN_WIDTH = 1 / _PER_UNIT
"""Width of a fine bin, in units of score."""

_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)
"""Bin widths in fine bins: each divides 20,000 and has round ends."""

_PER_OCTAVE = 16
_OCTAVES = 32
_BINS = 1 + _PER_OCTAVE * _OCTAVES


@dataclass(frozen=True, slots=True)
class Bins:
    """Counts [b] int64 of scores between neighbouring `ends` [b+1] float64, all bins equally
    wide.
    """

    ends: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @property
    def width(self) -> float:
        """Width of a bin, in units of score."""
        return round(float(self.ends[1] - self.ends[0]), 4)


class Histogram:
    """Counts of float32 scores in 20,000 bins over [-1, 1], with their moments.

    Memory is constant, and counts do not depend on the order or partition of scores.
    """

    def __init__(self) -> None:
        self._fine = np.zeros(_FINE_BINS, dtype=np.int64)
        self._moments = Moments()

    def add(self, scores: npt.NDArray[np.float32]) -> None:
        """Count the finite `scores` [n]; those beyond [-1, 1] go to the outermost bin."""
        finite = scores[np.isfinite(scores)].astype(np.float64)
        if not len(finite):
            return
        # A float32 times 10,000 is exact in float64, so each score gets its true bin.
        at = np.floor(finite * _PER_UNIT).astype(np.int64) + _PER_UNIT
        self._fine += np.bincount(np.clip(at, 0, _FINE_BINS - 1), minlength=_FINE_BINS)
        self._moments.add(finite)

    def merge(self, other: Self) -> None:
        """Add the counts of another part."""
        self._fine += other._fine
        self._moments.merge(other._moments)

    @property
    def count(self) -> int:
        """Number of scores counted."""
        return int(self._fine.sum())

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Counts [20,000] int64 of the bins, each 0.0001 wide, from -1 upwards."""
        return self._fine

    @property
    def moment(self) -> Moment:
        """Count, mean, spread, least and greatest of the scores."""
        return self._moments[0]

    @property
    def mean(self) -> float:
        """Mean score; NaN if empty."""
        return _or_nan(self._moments[0].mean)

    @property
    def deviation(self) -> float:
        """Standard deviation of the scores; NaN if empty."""
        return _or_nan(self._moments[0].std)

    @property
    def min(self) -> float:
        """Minimum score; NaN if empty."""
        return _or_nan(self._moments[0].min)

    @property
    def max(self) -> float:
        """Maximum score; NaN if empty."""
        return _or_nan(self._moments[0].max)

    def to_json(self) -> dict[str, Any]:
        """Counts of non-empty bins, and the moments; exact when read back."""
        return {"moments": self._moments.to_json(), **_sparse(self._fine)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Restore from the output of `to_json`.

        Raises:
            KeyError, TypeError, ValueError, IndexError: invalid data.
        """
        histogram = cls()
        histogram._moments = Moments.from_json(fields["moments"])
        _fill(histogram._fine, fields)
        return histogram

    def quantile(self, share: float) -> float:
        """Score below which `share` of the scores are, to within one fine bin (0.0001).

        Raises:
            ValueError: no score was counted.
        """
        if not self.count:
            raise ValueError("an empty histogram has no quantiles")
        at = int(np.searchsorted(np.cumsum(self._fine), share * self.count))
        middle = (min(at, _FINE_BINS - 1) + 0.5) / _PER_UNIT - 1.0
        return min(max(middle, self.min), self.max)

    def bins(self, at_most: int = 80, beside: Self | None = None) -> Bins:
        """At most `at_most` (at least 1) bins with round ends over the range of the scores and
        of those of `beside`, so that both have the same bins.

        Raises:
            ValueError: no score was counted.
        """
        if not self.count:
            raise ValueError("an empty histogram has no bins")
        filled = np.flatnonzero(self._fine if beside is None else self._fine + beside._fine)
        first, last = int(filled[0]), int(filled[-1])
        step = next(s for s in _STEPS if last // s - first // s < at_most)
        start, stop = first // step * step, (last // step + 1) * step
        ends = np.arange(start, stop + 1, step) / _PER_UNIT - 1.0
        return Bins(np.round(ends, 4), self._fine[start:stop].reshape(-1, step).sum(axis=1))


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


class LogHistogram:
    """Counts in 16 bins per power of two, with exact moments.

    Each number below 32 has its own bin; larger ones share a bin with numbers at most 1/16
    greater. Memory is constant, and counts of parts add up.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, dtype=np.int64)
        self._moments = Moments()

    def add(self, sizes: npt.NDArray[Any]) -> None:
        """Count `sizes` [n], integers from 0 to 2^32."""
        if not len(sizes):
            return
        mantissa, exponent = np.frexp(np.maximum(sizes, 0).astype(np.float64))
        within = np.floor((2 * mantissa - 1) * _PER_OCTAVE).astype(np.int64)
        at = np.where(mantissa > 0, 1 + (exponent - 1) * _PER_OCTAVE + within, 0)
        self.counts += np.bincount(np.minimum(at, _BINS - 1), minlength=_BINS)
        self._moments.add(sizes)

    def merge(self, other: Self) -> None:
        """Add the counts of another part."""
        self.counts += other.counts
        self._moments.merge(other._moments)

    @property
    def moment(self) -> Moment:
        """Count, mean, standard deviation, minimum and maximum."""
        return self._moments[0]

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

    def to_json(self) -> dict[str, Any]:
        """Counts of non-empty bins, and the moments; exact when read back."""
        return {"moments": self._moments.to_json(), **_sparse(self.counts)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Restore from the output of `to_json`.

        Raises:
            KeyError, TypeError, ValueError, IndexError: invalid data.
        """
        histogram = cls()
        histogram._moments = Moments.from_json(fields["moments"])
        _fill(histogram.counts, fields)
        return histogram


def _sparse(counts: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """Return the non-empty bins and their counts."""
    filled = np.flatnonzero(counts)
    return {"bins": filled.tolist(), "counts": counts[filled].tolist()}


def _fill(counts: npt.NDArray[np.int64], fields: dict[str, Any]) -> None:
    """Restore `counts` from the output of `_sparse`.

    Raises:
        KeyError, TypeError, ValueError, IndexError: invalid data.
    """
    at = np.asarray(fields["bins"], dtype=np.int64)
    values = np.asarray(fields["counts"], dtype=np.int64)
    if at.shape != values.shape or (values < 0).any() or (at < 0).any():
        raise ValueError("bins and their counts do not fit each other")
    counts[at] = values
