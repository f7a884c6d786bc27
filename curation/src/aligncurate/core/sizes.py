"""Counts of whole numbers of any size, such as lengths in characters or pixels, in few bins."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from aligncurate.core.moments import Moment, Moments

_PER_OCTAVE = 16
_OCTAVES = 32
_BINS = 1 + _PER_OCTAVE * _OCTAVES


class SizeCounts:
    """Counts in 16 bins between any two powers of two, with exact moments.

    Each number below 32 has a bin of its own and larger ones share a bin with what is at most 1/16
    more. Memory is constant, and counts of parts add up to those of the whole.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, dtype=np.int64)
        self._moments = Moments()

    def add(self, sizes: npt.NDArray[Any]) -> None:
        """Count `sizes` [n], whole numbers from 0 to 2^32."""
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
        """Count, mean, spread, least and greatest."""
        return self._moments[0]

    @property
    def median(self) -> int | None:
        """The number that half of them are below, to within its bin; None of nothing."""
        total = int(self.counts.sum())
        if not total:
            return None
        at = int(np.searchsorted(np.cumsum(self.counts), total / 2))
        octave, step = divmod(at - 1, _PER_OCTAVE)
        least = 0.0 if at == 0 else 2.0**octave * (1 + step / _PER_OCTAVE)
        return int(np.ceil(least))

    def to_json(self) -> dict[str, Any]:
        """Counts of the bins that hold any, and the moments; read again to the bit."""
        return {"moments": self._moments.to_json(), **sparse(self.counts)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, IndexError: it did not write this.
        """
        sizes = cls()
        sizes._moments = Moments.from_json(fields["moments"])
        fill(sizes.counts, fields)
        return sizes


def sparse(counts: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """The bins that hold anything, and their counts."""
    filled = np.flatnonzero(counts)
    return {"bins": filled.tolist(), "counts": counts[filled].tolist()}


def fill(counts: npt.NDArray[np.int64], fields: dict[str, Any]) -> None:
    """Set `counts` to what `sparse` told.

    Raises:
        KeyError, TypeError, ValueError, IndexError: it told something else.
    """
    at = np.asarray(fields["bins"], dtype=np.int64)
    values = np.asarray(fields["counts"], dtype=np.int64)
    if at.shape != values.shape or (values < 0).any() or (at < 0).any():
        raise ValueError("bins and their counts do not fit each other")
    counts[at] = values
