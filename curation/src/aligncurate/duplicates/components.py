"""Connected components of a graph whose edges come block by block; no edge is kept."""

import numpy as np
import numpy.typing as npt


class Components:
    """The connected components of `size` nodes, in 8 bytes for each, however many edges there are.

    Union-find over arrays: each node points to one of its component with a smaller number, and the
    smallest points to itself. Whole blocks of edges are joined at a time (hooking and pointer
    jumping, after Shiloach and Vishkin 1982).
    """

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size)

    def join(self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> None:
        """Add the edges between `first` [m] and `second` [m]."""
        while len(first):
            first, second = self._roots(first), self._roots(second)
            apart = first != second
            first, second = first[apart], second[apart]
            # The greater root hooks to the least root that it meets, so that no circle can arise.
            np.minimum.at(self._parent, np.maximum(first, second), np.minimum(first, second))

    def labels(self) -> npt.NDArray[np.int64]:
        """For every node [n] the least node of its component."""
        return self._roots(np.arange(len(self._parent)))

    def groups(self) -> list[npt.NDArray[np.int64]]:
        """The components of two and more nodes, each ascending, by their least nodes."""
        labels = self.labels()
        sizes = np.bincount(labels, minlength=len(labels))
        members = np.flatnonzero(sizes[labels] > 1)
        members = members[np.argsort(labels[members], kind="stable")]
        starts = np.flatnonzero(np.diff(labels[members])) + 1
        return np.split(members, starts) if len(members) else []

    def _roots(self, nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        roots = self._parent[nodes]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[nodes] = roots  # the next walk is one step long
        return roots
