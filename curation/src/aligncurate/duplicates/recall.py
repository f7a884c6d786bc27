"""Recall of an approximate search for pairs, measured on a sample of rows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aligncurate.core.vectors import Rows, Units, Vectors

_QUERIES_AT_A_TIME = 1024
_MOST_QUERIES = 4096
_ENOUGH_PAIRS = 256
_TOO_FEW_PAIRS = 50
_PAIRS_PER_QUERY = 8
"""Limit per query, so that one crowd of like images does not dominate the measurement."""

_PROBES_AT_FIRST = 64
_BLOCK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class PairSample:
    """A sample of true pairs: unit vectors `queries` [q, d], each query's row in the data [q],
    and pairs of a query `first` [m] and a row `second` [m], whose vectors are `others` [m, d].

    `rows` were compared with all. With `planted`, queries are not rows of the data.
    """

    queries: Units
    query_rows: Rows
    first: Rows
    second: Rows
    others: Units
    rows: int
    planted: bool


def sample_pairs(vectors: Vectors, threshold: float, rng: np.random.Generator) -> PairSample:
    """Find pairs of random rows of `vectors` by comparing them with every row.

    Rows are added until there are enough pairs for a standard error of 0.006 at a recall of
    0.99, or 4,096 rows. If hardly any pair is found, pairs are planted: each row is rotated in a
    random direction to a cosine just above `threshold`.
    """
    count = len(vectors)
    order = rng.permutation(count)[:_MOST_QUERIES]
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    drawn = 0
    while drawn < len(order) and sum(map(len, firsts)) < _ENOUGH_PAIRS:
        rows = order[drawn : drawn + _QUERIES_AT_A_TIME]
        first, second = pairs_with_all(vectors.units(rows), vectors, threshold, _BLOCK_ROWS)
        others = rows[first] != second
        first, second = _few_of_each(first[others], second[others], rng)
        firsts.append(first + drawn)
        seconds.append(second)
        drawn += len(rows)
    order, first, second = order[:drawn], np.concatenate(firsts), np.concatenate(seconds)
    queries = vectors.units(order)
    if len(first) < _TOO_FEW_PAIRS:
        turned = _turned(queries, threshold + 0.01 * (1 - threshold), rng)
        own = np.arange(drawn)
        return PairSample(turned, np.full(drawn, -1), own, order, queries, drawn, True)
    return PairSample(queries, order, first, second, vectors.units(second), drawn, False)


def probes_for(
    sample: PairSample, target: float, cells: int, nearest: Callable[[Units, int], Rows]
) -> tuple[int, float]:
    """Return the least number of cells to probe for a recall of `target`, and the recall
    reached.

    A pair is found if either row probes the other's cell; a planted one, if the query probes the
    row's.

    Args:
        sample: pairs to find.
        target: in (0, 1].
        cells: number of cells.
        nearest: function from units [m, d] and k to the k nearest cells, own cell first.
    """
    most = min(_PROBES_AT_FIRST, cells)
    while True:
        of_queries, of_others = (nearest(units, most) for units in (sample.queries, sample.others))
        needed = _place_of(of_others[:, 0], of_queries[sample.first])
        if not sample.planted:
            back = _place_of(of_queries[sample.first, 0], of_others)
            needed = np.minimum(needed, back)
        needed.sort()
        at = max(int(np.ceil(target * len(needed))), 1) - 1
        if needed[at] <= most:
            probes = int(needed[at])
            return probes, float((needed <= probes).mean())
        most = min(most * 8, cells)


def _place_of(cell: Rows, nearest: Rows) -> Rows:
    """Position of `cell` [m] among `nearest` [m, k], counted from 1; beyond all if absent."""
    same = nearest == cell[:, None]
    return np.where(same.any(axis=1), same.argmax(axis=1) + 1, np.iinfo(np.int64).max)


def pairs_with_all(
    queries: Units, vectors: Vectors, threshold: float, block_rows: int
) -> tuple[Rows, Rows]:
    """Pairs of `queries` [q, d] and `vectors`, `block_rows` at a time, with a cosine of at least
    `threshold`.
    """
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for begin in range(0, len(vectors), block_rows):
        cosines = queries @ vectors.units(slice(begin, begin + block_rows)).T
        first, second = np.nonzero(cosines >= threshold)
        firsts.append(first)
        seconds.append(second + begin)
    return np.concatenate(firsts), np.concatenate(seconds)


def _few_of_each(first: Rows, second: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Return a few random pairs of each query at most."""
    shuffled = rng.permutation(len(first))
    shuffled = shuffled[np.argsort(first[shuffled], kind="stable")]
    first, second = first[shuffled], second[shuffled]
    place = np.arange(len(first)) - np.searchsorted(first, first)
    few = place < _PAIRS_PER_QUERY
    return first[few], second[few]


def _turned(rows: Units, cosine: float, rng: np.random.Generator) -> Units:
    """Return unit vectors [n, d] at exactly `cosine` to `rows` [n, d], in random directions."""
    aside = rng.standard_normal(rows.shape).astype(np.float32)
    aside -= np.einsum("nd,nd->n", aside, rows)[:, None] * rows
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return cosine * rows + (1 - cosine**2) ** 0.5 * aside
