"""The rows of a long stream with the greatest values, in memory for these rows alone."""

from typing import Self

import numpy as np
import numpy.typing as npt


class Best:
    """The `count` greatest values met so far and their places, whatever the order of the blocks.

    Of equal values the one with the lesser place comes first.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.values = np.empty(0, np.float32)
        self.places = np.empty(0, np.int64)

    def add(self, values: npt.NDArray[np.float32], first: int) -> None:
        """Take in `values` [n] of the places from `first` on; NaN is never among the greatest."""
        if len(self.values) == self._count:
            better = np.flatnonzero(values >= self.values[-1])
        else:
            better = np.flatnonzero(values == values)
        self._keep(values[better], better + first)

    def merge(self, other: Self) -> None:
        """Take in what another part of the stream had."""
        self._keep(other.values, other.places)

    def _keep(self, values: npt.NDArray[np.float32], places: npt.NDArray[np.int64]) -> None:
        values = np.concatenate([self.values, values])
        places = np.concatenate([self.places, places])
        order = np.lexsort((places, -values))[: self._count]
        self.values, self.places = values[order], places[order]
