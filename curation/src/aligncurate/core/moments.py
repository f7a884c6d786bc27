"""Streaming count, mean, standard deviation, minimum and maximum, mergeable across shards.

Sums of squares lose precision when the spread is small compared to the mean, so means and
squared deviations are merged with the formula of Chan, Golub and LeVeque (1979), "Updating
Formulae and a Pairwise Algorithm for Computing Sample Variances", equations 2.1a and 2.1b.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Moment:
    """Statistics of one group; all but `count` are None if the group is empty.

    `std` is the standard deviation with divisor n.
    """

    count: int
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None


class Moments:
    """Moments of `groups` groups of numbers, in constant memory."""

    def __init__(self, groups: int = 1) -> None:
        self._count = np.zeros(groups, dtype=np.int64)
        self._mean = np.zeros(groups, dtype=np.float64)
        self._squared_deviations = np.zeros(groups, dtype=np.float64)
        self._min = np.full(groups, np.inf)
        self._max = np.full(groups, -np.inf)

    def add(self, values: npt.NDArray[Any], groups: npt.NDArray[np.intp] | None = None) -> None:
        """Add finite `values` [n] to their groups `groups` [n], counted from 0."""
        numbers = values.astype(np.float64)
        at = np.zeros(len(numbers), dtype=np.intp) if groups is None else groups
        size = len(self._count)
        part = type(self)(size)
        part._count += np.bincount(at, minlength=size)
        part._mean = _divided(np.bincount(at, weights=numbers, minlength=size), part._count)
        squares = np.square(numbers - part._mean[at])
        part._squared_deviations += np.bincount(at, weights=squares, minlength=size)
        np.minimum.at(part._min, at, numbers)
        np.maximum.at(part._max, at, numbers)
        self.merge(part)

    def merge(self, other: Self) -> None:
        """Merge `other`."""
        count = self._count + other._count
        step = other._mean - self._mean
        share = _divided(other._count.astype(np.float64), count)
        self._squared_deviations += other._squared_deviations
        self._squared_deviations += np.square(step) * self._count * share
        self._mean += step * share
        self._count = count
        np.minimum(self._min, other._min, out=self._min)
        np.maximum(self._max, other._max, out=self._max)

    def __len__(self) -> int:
        return len(self._count)

    def __getitem__(self, group: int) -> Moment:
        count = int(self._count[group])
        if not count:
            return Moment(0)
        return Moment(
            count,
            float(self._mean[group]),
            float(self._squared_deviations[group] / count) ** 0.5,
            float(self._min[group]),
            float(self._max[group]),
        )

    def to_json(self) -> list[list[float | int | None]]:
        """Count, mean, sum of squared deviations, minimum and maximum of each group, exactly."""
        columns = (self._count, self._mean, self._squared_deviations, self._min, self._max)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [list(row) if row[0] else [0, None, None, None, None] for row in rows]

    @classmethod
    def from_json(cls, rows: list[list[Any]]) -> Self:
        """Restore from the output of `to_json`.

        Raises:
            ValueError, TypeError: invalid data.
        """
        moments = cls(len(rows))
        for group, (count, mean, squared_deviations, least, greatest) in enumerate(rows):
            if not count:
                continue
            moments._count[group] = count
            moments._mean[group] = mean
            moments._squared_deviations[group] = squared_deviations
            moments._min[group], moments._max[group] = least, greatest
        return moments


def _divided(numbers: npt.NDArray[Any], by: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return `numbers` / `by`, 0 where `by` is 0."""
    return np.divide(numbers, by, out=np.zeros(len(numbers)), where=by > 0)
