"""Pairs of rows whose unit embeddings have a cosine of at least a threshold.

Few rows are compared exhaustively (faiss IndexFlatIP). Many are sorted into cells around
centroids, as in an inverted file (faiss Kmeans and IndexFlatIP), and compared only with the rows
of the nearest cells. The number of cells probed is chosen so that recall against an exhaustive
search, measured on a sample of rows, reaches a target; the recall is reported. All rows probing
a cell are compared with its rows by one matrix product, several times as fast on a CPU as
faiss's search query by query.

With GPUs and faiss-gpu, the exhaustive search runs there, up to many more rows. Nothing else
imports faiss.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from aligncurate.core.vectors import Rows, Units, Vectors
from aligncurate.duplicates.recall import pairs_with_all, probes_for, sample_pairs

EXACT_MAX_ROWS = 20_000
"""Maximum rows for an exhaustive search, which takes seconds."""

GPU_EXACT_MAX_ROWS = 10_000_000
"""Maximum rows for an exhaustive search on GPUs: 10 GB of float16 at 512 dimensions, and
minutes.
"""

_TRAINING_ROUNDS = 8
_TRAINING_ROWS_PER_CELL = 40
_BLOCK_ROWS = 2048
_FIRST_BLOCK_ROWS = 256
_MEMBERS_AT_A_TIME = 4096
_MOST_PAIRS = 1 << 22
"""Target number of pairs per block: 50 MB of faiss results."""

_FIRST_K, _MOST_K = 32, 2048
"""Initial and maximum number of neighbours requested from a GPU; the maximum is faiss's."""


@dataclass(frozen=True, slots=True)
class PairBlock:
    """Pairs found among `rows` more rows: `first` [m] and `second` [m] int64, never equal.

    A pair may occur twice, once from either side.
    """

    rows: int
    first: Rows
    second: Rows


@dataclass(frozen=True, slots=True)
class SearchFacts:
    """Method of the search, and its recall.

    `recall` is 1 for an exact search. Otherwise it was measured on `recall_pairs` pairs, found
    by comparing `recall_rows` rows with all; with `planted`, on copies of these rows rotated to
    the threshold, since too few pairs were found.
    """

    method: Literal["exact", "ivf"]
    device: Literal["cpu", "gpu"]
    cells: int | None = None
    probes: int | None = None
    recall: float = 1.0
    recall_rows: int = 0
    recall_pairs: int = 0
    planted: bool = False


class NeighbourSearch:
    """Finds the pairs of `vectors`, n of d values, with a cosine of at least `threshold` > 0.

    The index takes 4 d bytes per row for an exact search, and 24 bytes per row and probed cell
    otherwise, plus one block of rows and its pairs.

    Args:
        target: minimum recall, in (0, 1].
        exact_max: maximum rows for an exact search; None depends on the device.
        threads: of faiss; 0 leaves the number unchanged.
        seed: of the samples for centroids and recall.
    """

    def __init__(
        self,
        vectors: Vectors,
        threshold: float,
        *,
        target: float = 0.99,
        exact_max: int | None = None,
        threads: int = 0,
        seed: int = 0,
    ) -> None:
        import faiss

        if threads:
            faiss.omp_set_num_threads(threads)
        self._faiss: Any = faiss
        self._vectors = vectors
        self._threshold = threshold
        gpus: int = faiss.get_num_gpus()
        if exact_max is None:
            exact_max = GPU_EXACT_MAX_ROWS if gpus else EXACT_MAX_ROWS
        if len(vectors) <= exact_max:
            self.facts = SearchFacts("exact", "gpu" if gpus else "cpu")
            return
        rng = np.random.default_rng(seed)
        self._cells = self._centroids(rng)
        sample = sample_pairs(vectors, threshold, rng)
        cells: int = self._cells.ntotal
        probes, recall = probes_for(sample, target, cells, self._nearest_cells)
        self.facts = SearchFacts(
            "ivf", "cpu", cells, probes, recall, sample.rows, len(sample.first), sample.planted
        )

    def pairs(self) -> Iterator[PairBlock]:
        """Yield all pairs, block by block."""
        if self.facts.method == "ivf":
            return self._pairs_in_cells(self.facts.probes or 1)
        return self._pairs_on_gpu() if self.facts.device == "gpu" else self._all_pairs()

    def _all_pairs(self) -> Iterator[PairBlock]:
        index = self._faiss.IndexFlatIP(self._vectors.dim)
        # faiss returns values > radius; this search needs values >= threshold.
        radius = float(np.nextafter(np.float32(self._threshold), np.float32(-2)))
        begin, size = 0, _FIRST_BLOCK_ROWS
        while begin < len(self._vectors):
            rows = self._vectors.units(slice(begin, begin + size))
            index.add(rows)  # each row is only compared with those before it
            starts, _, neighbours = index.range_search(rows, radius)
            per_row = np.diff(starts.astype(np.int64))
            first = np.repeat(np.arange(begin, begin + len(rows)), per_row)
            yield _without_itself(len(rows), first, neighbours)
            begin += len(rows)
            # Many collections store similar images next to each other.
            size = int(np.clip(_MOST_PAIRS // max(int(per_row.max()), 1), 16, _BLOCK_ROWS))

    def _centroids(self, rng: np.random.Generator) -> Any:
        """Return an index of 3 √n centroids of a sample of the rows."""
        count = len(self._vectors)
        cells = max(int(3 * count**0.5), 1)
        chosen = rng.choice(count, min(count, cells * _TRAINING_ROWS_PER_CELL), replace=False)
        kmeans = self._faiss.Kmeans(
            self._vectors.dim, cells, niter=_TRAINING_ROUNDS, spherical=True,
            min_points_per_centroid=1, max_points_per_centroid=_TRAINING_ROWS_PER_CELL,
            seed=int(rng.integers(1 << 31)),
        )  # fmt: skip
        kmeans.train(self._vectors.units(np.sort(chosen)))
        return kmeans.index

    def _nearest_cells(self, units: Units, probes: int) -> Rows:
        """Return the `probes` cells nearest to each of `units` [m, d]: [m, probes], own cell
        first.
        """
        return self._cells.search(units, probes)[1]

    def _pairs_in_cells(self, probes: int) -> Iterator[PairBlock]:
        count = len(self._vectors)
        looked_into = np.empty((count, probes), np.int32)
        for begin, rows in self._blocks():
            looked_into[begin : begin + len(rows)] = self._nearest_cells(rows, probes)
        for members, queries in _by_cell(looked_into, self._cells.ntotal):
            for begin in range(0, len(members), _MEMBERS_AT_A_TIME):
                some = members[begin : begin + _MEMBERS_AT_A_TIME]
                units = self._vectors.units(some)
                for at in range(0, len(queries), _BLOCK_ROWS):
                    asking = queries[at : at + _BLOCK_ROWS]
                    cosines = self._vectors.units(asking) @ units.T
                    first, second = np.nonzero(cosines >= self._threshold)
                    yield _without_itself(0, asking[first], some[second])
            yield PairBlock(len(members), members[:0], members[:0])

    def _pairs_on_gpu(self) -> Iterator[PairBlock]:
        """Yield pairs from a GPU, which returns the k nearest instead of a range: k grows as
        needed.
        """
        faiss, options = self._faiss, self._faiss.GpuMultipleClonerOptions()
        options.useFloat16 = options.shard = True
        empty = faiss.IndexFlatIP(self._vectors.dim)
        index = faiss.index_cpu_to_all_gpus(empty, co=options)
        for _, rows in self._blocks():
            index.add(rows)
        for begin, rows in self._blocks():
            first, second = nearest_pairs(index, rows, self._threshold, self._vectors)
            yield _without_itself(len(rows), first + begin, second)

    def _blocks(self) -> Iterator[tuple[int, Units]]:
        for begin in range(0, len(self._vectors), _BLOCK_ROWS):
            yield begin, self._vectors.units(slice(begin, begin + _BLOCK_ROWS))


def _by_cell(looked_into: np.ndarray[Any, Any], cells: int) -> Iterator[tuple[Rows, Rows]]:
    """For each cell, return the rows assigned to it and all rows probing it, both ascending."""
    own = np.argsort(looked_into[:, 0], kind="stable")
    own_ends = np.cumsum(np.bincount(looked_into[:, 0], minlength=cells))
    flat = looked_into.reshape(-1)
    asking = np.argsort(flat, kind="stable") // looked_into.shape[1]
    asking_ends = np.cumsum(np.bincount(flat, minlength=cells))
    for cell in range(cells):
        begin, first = (ends[cell - 1] if cell else 0 for ends in (own_ends, asking_ends))
        yield own[begin : own_ends[cell]], asking[first : asking_ends[cell]]


def nearest_pairs(
    index: Any, queries: Units, threshold: float, vectors: Vectors
) -> tuple[Rows, Rows]:
    """Pairs of `queries` [q, d] and rows of `index` with a cosine of at least `threshold`.

    This works on any faiss index with nearest-neighbour search; a query with more neighbours
    than a GPU returns is compared with all `vectors`.
    """
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    waiting, k = np.arange(len(queries)), _FIRST_K
    while len(waiting) and k <= _MOST_K:
        cosines, neighbours = index.search(queries[waiting], min(k, len(vectors)))
        inside = (cosines >= threshold) & (neighbours >= 0)
        done = ~inside[:, -1] | (k >= len(vectors))
        rows, columns = np.nonzero(inside & done[:, None])
        firsts.append(waiting[rows])
        seconds.append(neighbours[rows, columns])
        waiting, k = waiting[~done], k * 8
    if len(waiting):
        rows, others = pairs_with_all(queries[waiting], vectors, threshold, _BLOCK_ROWS)
        firsts.append(waiting[rows])
        seconds.append(others)
    return np.concatenate(firsts), np.concatenate(seconds)


def _without_itself(rows: int, first: Rows, second: Rows) -> PairBlock:
    others = first != second
    return PairBlock(rows, first[others], second[others])
