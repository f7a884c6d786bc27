"""Connected components of a graph streamed as blocks of edges, which are not stored."""

import numpy as np
import numpy.typing as npt


class Components:
    """Connected components of `size` nodes, in 8 bytes per node, whatever the number of edges.

    Union-find over arrays: each node points to a smaller node of its component, and the smallest
    to itself. Whole blocks of edges are joined at once (hooking and pointer jumping, after
    Shiloach and Vishkin 1982).
    """

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size)

    def join(self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> None:
        """Add the edges between `first` [m] and `second` [m]."""
        while len(first):
            first, second = self._roots(first), self._roots(second)
            apart = first != second
            first, second = first[apart], second[apart]
            # The greater root hooks to the least root it meets, which prevents cycles.
            np.minimum.at(self._parent, np.maximum(first, second), np.minimum(first, second))

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the least node of each node's component [n]."""
        return self._roots(np.arange(len(self._parent)))

    def groups(self) -> list[npt.NDArray[np.int64]]:
        """Return components of two or more nodes, each ascending, ordered by least node."""
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
