"""Drawing an exact number of rows from each of several groups, based only on their ids.

Each id has a 64-bit key derived from it and a seed; the rows with the least keys of each group
are drawn. The result is independent of the layout of rows and the number of workers. A first
pass counts keys by their upper 16 bits, which locates the last key to draw in one of 2^16 bins;
a second pass collects the keys of just those bins, one in 65,536, and finds the key: exact, in
memory independent of the number drawn.
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
"""Added since seed 0 would scramble to 0."""

MAX_SEED = (1 << 64) - 1

Keys = npt.NDArray[np.uint64]
Groups = npt.NDArray[np.intp]


def sampling_keys(ids: pa.Array, seed: int) -> Keys:
    """Return keys [n] uint64 of `ids` [n] under `seed`, from 0 to MAX_SEED."""
    mask = scramble(np.array([(seed + _SEED_OFFSET) & MAX_SEED], dtype=np.uint64))
    return scramble(hash_ids(ids) ^ mask)


def balanced_quotas(sizes: Sequence[int], rows: int) -> list[int]:
    """Number of rows to draw from each group of `sizes`, as even as possible.

    Groups that are too small give all their rows and the others share the rest; a remainder goes
    to the last groups, one row each. The sum is `rows`, or the total if smaller.
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
    """First pass: counts of each group's keys by their upper 16 bits."""

    def __init__(self, groups: int) -> None:
        self.counts = np.zeros((groups, BINS), dtype=np.int64)

    def add(self, keys: Keys, groups: Groups) -> None:
        """Count `keys` [n] of rows in `groups` [n], numbered from 0."""
        at = groups << 16 | (keys >> _BIN_SHIFT).astype(np.intp)
        np.add.at(self.counts.reshape(-1), at, 1)

    @property
    def sizes(self) -> list[int]:
        """Number of rows in each group."""
        return self.counts.sum(axis=1).tolist()


class Draw:
    """Selection of keys: all bins below the last one, and the least keys of the last one.

    `quotas` are the numbers to draw per group, at most `sizes`.
    """

    def __init__(self, counts: KeyCounts, quotas: Sequence[int]) -> None:
        upto = counts.counts.cumsum(axis=1)
        ranks = np.asarray(quotas) - 1
        # Bin of the last key to draw; -1 if none is drawn, BINS if all are.
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
        """Return the groups and values of those `keys` [n] that are in their group's last bin."""
        within = (keys >> _BIN_SHIFT).astype(np.intp) == self._last_bin[groups]
        some, of = keys[within], groups[within]
        return [(int(group), some[of == group]) for group in np.unique(of)]

    def resolve(self, parts: Iterable[list[tuple[int, Keys]]]) -> None:
        """Second pass: find the last keys from the `of_last_bin` of each part of the rows, in
        order.

        Rows with equal keys, should ids repeat, are drawn in the order of the parts.
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
        """Return a mask of the drawn rows [n] of part `part`, complete and in order."""
        last, bins = self._last_bin[groups], (keys >> _BIN_SHIFT).astype(np.intp)
        inside = bins == last
        drawn = (bins < last) | (inside & (keys < self._last_key[groups]))
        for group, last_key in enumerate(self._last_key):
            if taken := self._ties.get((part, group), 0):
                equal = inside & (groups == group) & (keys == last_key)
                drawn[np.flatnonzero(equal)[:taken]] = True
        return drawn
