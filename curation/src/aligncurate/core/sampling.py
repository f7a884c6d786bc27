"""Drawing an exact number of rows from each of several groups, by their ids alone.

Every id has a 64-bit key that depends on it and on a seed; of each group the rows with the least
keys are drawn. So the same rows are drawn from any layout of the same rows, by any number of
workers. One pass counts keys by their upper 16 bits, which says in which of 2^16 bins the last
key to draw lies; a second pass collects the keys of just those bins, one in 65,536, which says the
key itself: exact, in memory that does not grow with what is drawn.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.idhash import hash_ids
from alignshared.hashing import GOLDEN_GAMMA, scramble

BINS = 1 << 16
_BIN_SHIFT = np.uint64(64 - 16)
_SEED_OFFSET = GOLDEN_GAMMA
"""Added so that seed 0, whose scramble is 0, is a seed like others."""

MAX_SEED = (1 << 64) - 1

Keys = npt.NDArray[np.uint64]
Groups = npt.NDArray[np.intp]


def sampling_keys(ids: pa.Array, seed: int) -> Keys:
    """Keys [n] uint64 of `ids` [n] under `seed`, from 0 to MAX_SEED."""
    mask = scramble(np.array([(seed + _SEED_OFFSET) & MAX_SEED], dtype=np.uint64))
    return scramble(hash_ids(ids) ^ mask)


def balanced_quotas(sizes: Sequence[int], rows: int) -> list[int]:
    """Rows to draw from each group of `sizes`, as evenly as they allow.

    A group that has too few gives all it has and the others share the rest; what cannot be shared
    evenly goes to the last groups, one row each. The sum is `rows`, or all there are.
    """
    quotas = [0] * len(sizes)
    left = min(rows, sum(sizes))
    # From the smallest: once a group has more than its share, so have all that follow; among
    # equals the later group comes later, where shares are rounded up.
    waiting = sorted(range(len(sizes)), key=lambda group: (sizes[group], group))
    for position, group in enumerate(waiting):
        quotas[group] = min(sizes[group], left // (len(waiting) - position))
        left -= quotas[group]
    return quotas


class KeyCounts:
    """First pass: how many keys of each group have each value of their upper 16 bits."""

    def __init__(self, groups: int) -> None:
        self.counts = np.zeros((groups, BINS), dtype=np.int64)

    def add(self, keys: Keys, groups: Groups) -> None:
        """Count `keys` [n] of rows in `groups` [n], numbered from 0."""
        at = groups << 16 | (keys >> _BIN_SHIFT).astype(np.intp)
        np.add.at(self.counts.reshape(-1), at, 1)

    @property
    def sizes(self) -> list[int]:
        """Rows of each group."""
        return self.counts.sum(axis=1).tolist()


class Draw:
    """Choice of the keys to draw: those of bins below the last one, and of the last one the least.

    `quotas` say how many of each group; `sizes` are at least as many.
    """

    def __init__(self, counts: KeyCounts, quotas: Sequence[int]) -> None:
        upto = counts.counts.cumsum(axis=1)
        ranks = np.asarray(quotas) - 1
        # The bin of the last key to draw; -1 where none is drawn, BINS where all are.
        self._last_bin = np.array(
            [
                np.searchsorted(row, rank, side="right") if rank >= 0 else -1
                for row, rank in zip(upto, ranks, strict=True)
            ]
        )
        self._missing = [
            quota - (int(row[last - 1]) if last > 0 else 0)
            for row, last, quota in zip(upto, self._last_bin.tolist(), quotas, strict=True)
        ]
        self._last_key = np.zeros(len(quotas), dtype=np.uint64)
        self._ties: dict[tuple[int, int], int] = {}

    def of_last_bin(self, keys: Keys, groups: Groups) -> list[tuple[int, Keys]]:
        """The groups of which some of `keys` [n] lie in the bin of its last key, and those keys."""
        within = (keys >> _BIN_SHIFT).astype(np.intp) == self._last_bin[groups]
        some, of = keys[within], groups[within]
        return [(int(group), some[of == group]) for group in np.unique(of)]

    def resolve(self, parts: Iterable[list[tuple[int, Keys]]]) -> None:
        """Second pass: find the last keys, given `of_last_bin` of each part of the rows in order.

        Rows with equal keys, should ids be equal, are drawn in the order of the parts.
        """
        keys_of: list[list[tuple[int, Keys]]] = [[] for _ in self._missing]
        for part, of_part in enumerate(parts):
            for group, keys in of_part:
                keys_of[group].append((part, keys))
        for group, (missing, of_group) in enumerate(zip(self._missing, keys_of, strict=True)):
            if missing <= 0:
                continue
            ordered = np.sort(np.concatenate([keys for _, keys in of_group]))
            last = ordered[missing - 1]
            self._last_key[group] = last
            left = missing - int(np.searchsorted(ordered, last))
            for part, keys in of_group:
                taken = min(left, int(np.count_nonzero(keys == last)))
                if taken:
                    self._ties[part, group] = taken
                    left -= taken

    def drawn(self, part: int, keys: Keys, groups: Groups) -> npt.NDArray[np.bool_]:
        """Return which rows [n] of part `part` of the rows, all of them in order, are drawn."""
        last, bins = self._last_bin[groups], (keys >> _BIN_SHIFT).astype(np.intp)
        inside = bins == last
        drawn = (bins < last) | (inside & (keys < self._last_key[groups]))
        for group, last_key in enumerate(self._last_key):
            if taken := self._ties.get((part, group), 0):
                equal = inside & (groups == group) & (keys == last_key)
                drawn[np.flatnonzero(equal)[:taken]] = True
        return drawn
