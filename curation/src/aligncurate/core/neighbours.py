"""Pairs of rows whose unit embeddings have a cosine of at least a threshold.

Few rows are compared each with each (faiss IndexFlatIP). Many are sorted into cells around
centroids, and each is compared with the rows of the cells nearest to it alone (faiss IVF): so many
cells that on a sample of the rows the share of pairs that are found, against a comparison with all
rows, reaches a target. That share is told.

With GPUs and faiss-gpu the same indexes lie on the GPUs. The only place that imports faiss.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from aligncurate.core.recall import measure_recall, sample_pairs
from aligncurate.core.vectors import Rows, Units, Vectors

EXACT_MAX_ROWS = 20_000
"""Up to so many rows each is compared with each, which takes seconds."""

GPU_EXACT_MAX_ROWS = 2_000_000

_TRAINING_ROUNDS = 6
_TRAINING_ROWS_PER_CELL = 40
_BLOCK_ROWS = 2048
_FIRST_BLOCK_ROWS = 256
_MOST_PAIRS = 1 << 22
"""Pairs of a block that are aimed at: 50 MB of what faiss returns."""

_ROUNDING = 1e-3
"""More than a cosine can change when the vectors of an index are rounded to float16."""

_FIRST_K, _MOST_K = 32, 2048
"""Neighbours asked of a GPU at first, and the most that faiss has it give."""


@dataclass(frozen=True, slots=True)
class PairBlock:
    """Pairs found for the next `rows` rows: `first` [m] and `second` [m] int64, never equal.

    A pair may come twice, once from either side.
    """

    rows: int
    first: Rows
    second: Rows


@dataclass(frozen=True, slots=True)
class SearchFacts:
    """How the pairs are searched for, and how many of them are found.

    `recall` is 1 for an exact search. Else it was measured on `recall_pairs` pairs, found by
    comparing `recall_rows` rows with all; with `planted`, on copies that were turned away from
    these rows up to the threshold, since too few pairs were found.
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

    The index takes 4 d bytes for each row of an exact search, 2 d + 8 of another one. Beside it
    stands a block of rows and its pairs, and a block is small where rows have many neighbours.

    Args:
        target: recall to reach at least, in (0, 1].
        exact_max: rows up to which the search is exact; None takes what suits the device.
        threads: of faiss; 0 leaves them as they are.
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
        self._gpus: int = faiss.get_num_gpus()
        limit = exact_max
        if limit is None:
            limit = GPU_EXACT_MAX_ROWS if self._gpus else EXACT_MAX_ROWS
        device = "gpu" if self._gpus else "cpu"
        if len(vectors) <= limit:
            self._index: Any = faiss.IndexFlatIP(vectors.dim)
            self.facts = SearchFacts("exact", device)
        else:
            rng = np.random.default_rng(seed)
            self._index = self._cells(rng)
            self.facts = self._with_recall(target, device, rng)

    def pairs(self) -> Iterator[PairBlock]:
        """All pairs, block by block; to be asked for once."""
        if self._gpus:
            yield from self._pairs_on_gpu()
            return
        growing = self.facts.method == "exact"
        begin, size = 0, _FIRST_BLOCK_ROWS
        while begin < len(self._vectors):
            rows = self._units(begin, begin + size)
            if growing:  # only rows before it have to be compared with a row: half of the work
                self._index.add(rows)
            starts, cosines, found = self._index.range_search(rows, self._radius())
            per_row = np.diff(starts.astype(np.int64))
            first = np.repeat(np.arange(begin, begin + len(rows)), per_row)
            first, found = self._confirmed(first, found, cosines)
            yield PairBlock(len(rows), first, found)
            begin += len(rows)
            # Crowds of like pictures lie together in many collections.
            size = int(np.clip(_MOST_PAIRS // max(int(per_row.max()), 1), 16, _BLOCK_ROWS))

    def _radius(self) -> float:
        # faiss takes what is greater than the radius, we what is not less than the threshold.
        return self._threshold - _ROUNDING

    def _confirmed(self, first: Rows, second: Rows, cosines: Units) -> tuple[Rows, Rows]:
        """The pairs of two rows that do reach the threshold, not by the index's rounding alone."""
        sure = cosines >= self._threshold + _ROUNDING
        doubtful = np.flatnonzero(~sure)
        for part in np.array_split(doubtful, max(len(doubtful) // _BLOCK_ROWS, 1)):
            units, others = (self._vectors.units(rows[part]) for rows in (first, second))
            sure[part] = np.einsum("md,md->m", units, others) >= self._threshold
        sure &= first != second
        return first[sure], second[sure]

    def _units(self, begin: int, end: int) -> Units:
        return self._vectors.units(slice(begin, end))

    def _blocks(self) -> Iterator[tuple[int, Units]]:
        for begin in range(0, len(self._vectors), _BLOCK_ROWS):
            yield begin, self._units(begin, begin + _BLOCK_ROWS)

    def _cells(self, rng: np.random.Generator) -> Any:
        """A trained IVF index of all rows, whose codes are float16 as the embeddings were."""
        faiss, count, dim = self._faiss, len(self._vectors), self._vectors.dim
        cells = max(int(3 * count**0.5), 1)
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, cells, faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT, False,
        )  # fmt: skip
        index.cp.niter = _TRAINING_ROUNDS
        sample = min(count, cells * _TRAINING_ROWS_PER_CELL)
        index.cp.min_points_per_centroid = 1  # which only quietens faiss
        index.cp.max_points_per_centroid = _TRAINING_ROWS_PER_CELL
        chosen = np.sort(rng.choice(count, sample, replace=False))
        index.train(self._vectors.units(chosen))
        for _, rows in self._blocks():
            index.add(rows)
        return index

    def _with_recall(
        self, target: float, device: Literal["cpu", "gpu"], rng: np.random.Generator
    ) -> SearchFacts:
        """Let the index look into as few cells as reach `target` on a sample."""
        sample = sample_pairs(self._vectors, self._threshold, rng)
        cells, probes, recall = self._index.nlist, 1, 0.0
        while True:
            self._index.nprobe = probes
            recall = measure_recall(sample, self._found)
            if recall >= target or probes == cells:
                break
            probes = min(probes * 2, cells)
        return SearchFacts(
            "ivf", device, cells, probes, recall, sample.rows, len(sample.first), sample.planted
        )

    def _found(self, queries: Units) -> tuple[Rows, Rows]:
        """Which query finds which row, at the present number of probes."""
        starts, _, found = self._index.range_search(queries, self._radius())
        return np.repeat(np.arange(len(queries)), np.diff(starts.astype(np.int64))), found

    def _pairs_on_gpu(self) -> Iterator[PairBlock]:
        """A GPU gives the k nearest, not all within a range: k grows where they do not suffice."""
        faiss, options = self._faiss, self._faiss.GpuMultipleClonerOptions()
        options.useFloat16 = options.shard = True
        if self.facts.method == "exact":
            for _, rows in self._blocks():
                self._index.add(rows)
        index = faiss.index_cpu_to_all_gpus(self._index, co=options)
        if self.facts.method == "ivf":
            faiss.GpuParameterSpace().set_index_parameter(index, "nprobe", self.facts.probes)
        for begin, rows in self._blocks():
            first, second = nearest_pairs(index, rows, self._threshold, self._vectors)
            others = first + begin != second
            yield PairBlock(len(rows), (first + begin)[others], second[others])


def nearest_pairs(
    index: Any, queries: Units, threshold: float, vectors: Vectors
) -> tuple[Rows, Rows]:
    """Which of `queries` [q, d] has which rows of `index` at a cosine of at least `threshold`.

    Works on any faiss index that can name the nearest; a query with more neighbours than a GPU can
    name is compared with all `vectors`.
    """
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    waiting, k = np.arange(len(queries)), _FIRST_K
    while len(waiting) and k <= _MOST_K:
        cosines, found = index.search(queries[waiting], min(k, len(vectors)))
        inside = (cosines >= threshold) & (found >= 0)
        done = ~inside[:, -1] | (k >= len(vectors))
        rows, columns = np.nonzero(inside & done[:, None])
        firsts.append(waiting[rows])
        seconds.append(found[rows, columns])
        waiting, k = waiting[~done], k * 8
    for begin in range(0, len(vectors) if len(waiting) else 0, _BLOCK_ROWS):
        cosines = queries[waiting] @ vectors.units(slice(begin, begin + _BLOCK_ROWS)).T
        rows, columns = np.nonzero(cosines >= threshold)
        firsts.append(waiting[rows])
        seconds.append(columns + begin)
    return np.concatenate(firsts), np.concatenate(seconds)
