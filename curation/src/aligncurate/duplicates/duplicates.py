"""Duplicates among a dataset's rows, and the row kept of each group.

Rows have an order of preference. A row is only a duplicate of a kept row that it equals or is
near itself: if A is like B and B like C, but A not like C, A does not stand for C, however long
the chain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from aligncurate.core.vectors import Rows, Units, Vectors

_LEADERS_AT_A_TIME = 1024


class Verdict(IntEnum):
    """Verdict on a row: kept, or dropped as a duplicate of a kept row."""

    KEPT = 0
    EXACT = 1
    NEAR = 2


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Per row [n]: the row kept for it (itself if kept), the cosine of the two images (1 if
    byte-identical), and its verdict.

    `components` counts those of several rows, exact duplicates aside; `largest` is the size of
    the largest.
    """

    kept: Rows
    cosine: npt.NDArray[np.float32]
    verdict: npt.NDArray[np.int8]
    components: int = 0
    largest: int = 0

    def count(self, verdict: Verdict) -> int:
        """Number of rows with `verdict`."""
        return int(np.count_nonzero(self.verdict == verdict))


class Components:
    """Connected components of a graph of `size` nodes streamed as blocks of edges, in 8 bytes per
    node, whatever the number of edges.

    Union-find over arrays: each node points to a smaller node of its component, and the smallest
    to itself. Whole blocks of edges are joined at once (hooking and pointer jumping, after
    Shiloach and Vishkin 1982).
    """

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size)

    def join(self, first: Rows, second: Rows) -> None:
        """Add the edges between `first` [m] and `second` [m]."""
        while len(first):
            first, second = self._roots(first), self._roots(second)
            apart = first != second
            first, second = first[apart], second[apart]
            # The greater root hooks to the least root it meets, which prevents cycles.
            np.minimum.at(self._parent, np.maximum(first, second), np.minimum(first, second))

    def labels(self) -> Rows:
        """Return the least node of each node's component [n]."""
        return self._roots(np.arange(len(self._parent)))

    def groups(self) -> list[Rows]:
        """Return components of two or more nodes, each ascending, ordered by least node."""
        labels = self.labels()
        sizes = np.bincount(labels, minlength=len(labels))
        members = np.flatnonzero(sizes[labels] > 1)
        members = members[np.argsort(labels[members], kind="stable")]
        starts = np.flatnonzero(np.diff(labels[members])) + 1
        return np.split(members, starts) if len(members) else []

    def _roots(self, nodes: Rows) -> Rows:
        roots = self._parent[nodes]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[nodes] = roots  # the next walk is one step long
        return roots


def exact_duplicates(digests: npt.NDArray[np.uint8], rank: Rows) -> Duplicates:
    """Find rows with equal `digests` [n, b], keeping the one with the least `rank` [n] of each
    group.

    A digest of zeros means no image and matches nothing.
    """
    count, width = digests.shape
    verdict = np.zeros(count, np.int8)
    kept = np.arange(count)
    with_image = np.flatnonzero(digests.any(axis=1))
    if len(with_image):
        texts = np.ascontiguousarray(digests[with_image]).view(f"V{width}").reshape(-1)
        _, group = np.unique(texts, return_inverse=True)
        order = np.lexsort((rank[with_image], group))
        first_of_group = np.flatnonzero(np.diff(group[order], prepend=-1))
        kept[with_image] = with_image[order[first_of_group]][group]
        verdict[kept != np.arange(count)] = Verdict.EXACT
    return Duplicates(kept, np.ones(count, np.float32), verdict)


def near_duplicates(
    exact: Duplicates,
    components: Components,
    rows: Rows,
    rank: Rows,
    vectors: Vectors,
    threshold: float,
    *,
    whole_chains: bool = False,
) -> Duplicates:
    """Add near duplicates to `exact`; the nodes of `components` are `rows` [m], the distinct
    ones.

    Of each component the row with the least `rank` [n] is kept, and rows whose cosine with it is
    at least `threshold` are dropped; this repeats with the remaining rows. With `whole_chains`
    one row of each component is kept, whatever the cosine.

    Args:
        exact: result of `exact_duplicates`.
        components: of the pairs with a cosine of at least `threshold`.
        rows: the row of each node, ascending.
        rank: place of each row in the order of preference.
        vectors: the embeddings of the nodes.
        threshold: least cosine of a dropped row with its kept row.
        whole_chains: keep one row per component.
    """
    kept, cosine = exact.kept.copy(), exact.cosine.copy()
    verdict = exact.verdict.copy()
    groups = components.groups()
    for group in groups:
        nodes = group[np.argsort(rank[rows[group]], kind="stable")]
        members = rows[nodes]
        leader, alike = lead(nodes, vectors, -2.0 if whole_chains else threshold)
        gone = leader != np.arange(len(members))
        kept[members] = members[leader]
        cosine[members] = alike
        verdict[members[gone]] = Verdict.NEAR
    # An exact duplicate of a row dropped as near is near to the same kept row.
    behind = np.flatnonzero(verdict == Verdict.EXACT)
    behind = behind[verdict[kept[behind]] == Verdict.NEAR]
    cosine[behind], kept[behind] = cosine[kept[behind]], kept[kept[behind]]
    verdict[behind] = Verdict.NEAR
    return Duplicates(kept, cosine, verdict, len(groups), max(map(len, groups), default=0))


def lead(
    nodes: Rows, vectors: Vectors, threshold: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For each of `nodes` [m], most preferred first, return the position of its leader among
    them, and their cosine.

    A node that is near no earlier leader becomes a leader; others follow the nearest one. Memory
    holds one block of nodes beside the leaders.
    """
    leader = np.arange(len(nodes))
    alike = np.ones(len(nodes), np.float32)
    places: list[int] = []
    led: list[Units] = []
    for begin in range(0, len(nodes), _LEADERS_AT_A_TIME):
        units = vectors.units(nodes[begin : begin + _LEADERS_AT_A_TIME])
        best = np.full(len(units), -np.inf, np.float32)
        for first, block in _blocks_of(led):
            cosines = units @ block.T
            at = cosines.argmax(axis=1)
            value = np.take_along_axis(cosines, at[:, None], axis=1)[:, 0]
            nearer = value > best
            best[nearer] = value[nearer]
            leader[begin + np.flatnonzero(nearer)] = np.asarray(places)[first + at[nearer]]
        _lead_within(units, begin, best, leader, threshold)
        new = np.flatnonzero(leader[begin : begin + len(units)] == begin + np.arange(len(units)))
        alike[begin : begin + len(units)] = np.clip(best, -1, 1)
        alike[begin + new] = 1
        places += (begin + new).tolist()
        led.append(units[new])
    return leader, alike


def _lead_within(
    units: Units,
    begin: int,
    best: npt.NDArray[np.float32],
    leader: npt.NDArray[np.intp],
    threshold: float,
) -> None:
    """Process one block in order; `best` is the cosine with the nearest leader so far."""
    among = units @ units.T
    for row in range(len(units)):
        if best[row] >= threshold:
            continue
        leader[begin + row] = begin + row
        later = np.arange(row + 1, len(units))
        nearer = later[among[row, later] > best[later]]
        best[nearer] = among[row, nearer]
        leader[begin + nearer] = begin + row


def _blocks_of(led: list[Units]) -> Iterator[tuple[int, Units]]:
    """Yield the leaders in blocks, with the position of each block's first."""
    first = 0
    for block in led:
        if len(block):
            yield first, block
        first += len(block)
