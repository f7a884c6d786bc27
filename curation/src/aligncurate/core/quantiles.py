"""Exact order statistics of any number of float32 scores, in constant memory.

The 2^32 float32 values are ordered like their bits, mapped by `sortable_keys`. A first pass
counts scores by the upper 16 bits of their key, which locates each requested rank in one of 2^16
bins; a second pass counts the lower 16 bits of scores in those bins and finds the score itself.
Counts of parts add up, so the result is identical for any partition and order of the scores.

Edge k of N (k = 1..N-1) over n finite scores is the score with 0-based rank floor(k*n/N) in
ascending order. With level = 1 + number of edges <= score, level k holds the ranks from
floor((k-1)*n/N) up to, not including, floor(k*n/N): without ties, level sizes differ by at most
1.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from alignshared.levels import edge_ranks

BINS = 1 << 16
"""Values of 16 bits: coarse bins, and scores within one of them."""

_CHUNK = 1 << 17
"""Scores at a time, so that temporary arrays fit in a core's cache."""

_SIGN = np.uint32(0x8000_0000)
_NEGATIVE_ZERO_KEY = np.uint32(0x7FFF_FFFF)

# Bits from 0x7f800000 (with the sign, 0xff800000) upwards are infinities and NaNs; these are the
# bins of the least and the greatest finite float32.
_FIRST_FINITE_BIN = 0x0080
_LAST_FINITE_BIN = 0xFF7F


def sortable_keys(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Keys [n] uint32 in the order of `scores` [n] float32, equal for -0.0 and 0.0.

    A negative number's bits grow with its magnitude, so all are flipped; for other numbers only
    the sign bit is, which orders them above the negative ones.
    """
    bits = scores.view(np.uint32)
    all_ones_if_negative = (bits.view(np.int32) >> 31).view(np.uint32)
    keys = bits ^ (all_ones_if_negative | _SIGN)
    keys += keys == _NEGATIVE_ZERO_KEY
    return keys


def _score_of_key(key: int) -> np.float32:
    """The float32 whose sortable key is `key`."""
    bits = key ^ 0x8000_0000 if key & 0x8000_0000 else key ^ 0xFFFF_FFFF
    return np.uint32(bits).view(np.float32)


def _key_chunks(scores: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.uint32]]:
    if scores.dtype != np.float32:
        raise TypeError(f"scores must be float32, not {scores.dtype}")
    for start in range(0, len(scores), _CHUNK):
        yield sortable_keys(scores[start : start + _CHUNK])


class CoarseCounts:
    """First pass: counts of scores by the upper half of their key."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, dtype=np.int64)

    def add(self, scores: npt.NDArray[np.float32]) -> None:
        """Count `scores` [n] float32; non-finite ones separately."""
        for keys in _key_chunks(scores):
            self.counts += np.bincount(keys >> 16, minlength=BINS)

    def merge(self, other: Self) -> None:
        """Add the counts of another part."""
        self.counts += other.counts

    @property
    def finite(self) -> int:
        """Number of finite scores."""
        return int(self.counts[_FIRST_FINITE_BIN : _LAST_FINITE_BIN + 1].sum())

    @property
    def non_finite(self) -> int:
        """Number of scores that are NaN or infinite."""
        return int(self.counts.sum()) - self.finite

    def finite_counts(self) -> npt.NDArray[np.int64]:
        """Counts [2^16] int64 by bin, with 0 in the bins of NaN and infinities."""
        counts = self.counts.copy()
        counts[:_FIRST_FINITE_BIN] = 0
        counts[_LAST_FINITE_BIN + 1 :] = 0
        return counts

    def bins_to_resolve(self, levels: int) -> npt.NDArray[np.intp]:
        """Bins, ascending, that the second pass must resolve for the edges of `levels` levels.

        These are the bins of the edges and of the minimum and maximum; or all non-empty bins, if
        fewer than the levels, to determine the number of distinct scores.
        """
        counts = self.finite_counts()
        occupied = np.flatnonzero(counts)
        if len(occupied) < levels:
            return occupied
        return self.bins_of_ranks([0, *edge_ranks(levels, self.finite), self.finite - 1])

    def bins_of_ranks(self, ranks: Sequence[int]) -> npt.NDArray[np.intp]:
        """Bins, ascending, of the finite scores with these 0-based ranks."""
        return np.unique(np.searchsorted(np.cumsum(self.finite_counts()), ranks, side="right"))


class FineCounts:
    """Second pass: counts of scores in given coarse bins by the lower half of their key."""

    def __init__(self, bins: npt.NDArray[np.intp]) -> None:
        self.bins = bins
        self.counts = np.zeros((len(bins), BINS), dtype=np.int64)
        self._row_of_bin = np.full(BINS, -1, dtype=np.int32)
        self._row_of_bin[bins] = np.arange(len(bins))

    def add(self, scores: npt.NDArray[np.float32]) -> None:
        """Count `scores` [n] float32, ignoring those outside the bins."""
        flat = self.counts.reshape(-1)
        for keys in _key_chunks(scores):
            rows = self._row_of_bin[keys >> 16]
            inside = rows >= 0
            at = rows[inside].astype(np.intp) << 16 | (keys[inside] & 0xFFFF)
            # bincount would create and add an array of all bins for every chunk.
            np.add.at(flat, at, 1)

    def merge(self, other: Self) -> None:
        """Add the counts of another part over the same bins."""
        self.counts += other.counts


class OrderedScores:
    """Finite scores in resolved bins by rank, from the counts of both passes."""

    def __init__(self, coarse: CoarseCounts, fine: FineCounts) -> None:
        counts = coarse.finite_counts()
        self._upto = np.cumsum(counts)
        self._unresolved = np.count_nonzero(counts) - np.count_nonzero(counts[fine.bins])
        self._fine = fine
        self.count = coarse.finite

    def at_rank(self, rank: int) -> np.float32:
        """The score with 0-based `rank` in ascending order.

        Raises:
            KeyError: the rank is in an unresolved bin.
        """
        coarse_bin = int(np.searchsorted(self._upto, rank, side="right"))
        before = int(self._upto[coarse_bin - 1]) if coarse_bin else 0
        upto = np.cumsum(self._fine.counts[self._row(coarse_bin)])
        low = int(np.searchsorted(upto, rank - before, side="right"))
        return _score_of_key(coarse_bin << 16 | low)

    def below(self, score: np.float32) -> int:
        """Number of scores less than `score`.

        Raises:
            KeyError: the score is in an unresolved bin.
        """
        key = int(sortable_keys(np.array([score], dtype=np.float32))[0])
        coarse_bin, low = key >> 16, key & 0xFFFF
        before = int(self._upto[coarse_bin - 1]) if coarse_bin else 0
        return before + int(self._fine.counts[self._row(coarse_bin), :low].sum())

    @property
    def distinct_at_least(self) -> int:
        """Lower bound on the number of distinct scores; exact if all bins were resolved."""
        return int(np.count_nonzero(self._fine.counts)) + int(self._unresolved)

    def _row(self, coarse_bin: int) -> int:
        row = int(np.searchsorted(self._fine.bins, coarse_bin))
        if row == len(self._fine.bins) or self._fine.bins[row] != coarse_bin:
            raise KeyError(f"bin {coarse_bin} was not counted in the second pass")
        return row


def quantile_edges(ordered: OrderedScores, levels: int) -> npt.NDArray[np.float32]:
    """The N-1 exact edges [N-1] float32 between N `levels`, as defined in the module docstring."""
    ranks = edge_ranks(levels, ordered.count)
    return np.array([ordered.at_rank(rank) for rank in ranks], dtype=np.float32)


def top_count(fraction: Fraction, count: int) -> int:
    """Number of scores in the top `fraction` of `count`: ceil(fraction * count).

    The top 1/N are level N of N quantile levels.
    """
    return -(-fraction.numerator * count // fraction.denominator)


def equal_width_edges(
    least: np.float32, greatest: np.float32, levels: int
) -> npt.NDArray[np.float32]:
    """N-1 edges [N-1] float32 dividing the range `least` to `greatest` into N equal intervals."""
    steps = np.arange(1, levels, dtype=np.float64) / levels
    # float64, in which the difference of any two float32 is finite.
    return (np.float64(least) * (1 - steps) + np.float64(greatest) * steps).astype(np.float32)


def level_sizes(ordered: OrderedScores, edges: Sequence[np.float32]) -> list[int]:
    """Number of scores in each level of quantile `edges`, before labelling."""
    bounds = [0, *(ordered.below(edge) for edge in edges), ordered.count]
    return [upper - lower for lower, upper in pairwise(bounds)]
