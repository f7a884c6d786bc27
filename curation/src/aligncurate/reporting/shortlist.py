"""Shortlist of example pairs, found in the one pass of the summary in any layout of shards."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.idhash import hash_ids
from alignshared import Manifest

_SAMPLE = 4096
"""Approximate number of pairs, sampled by id hash, searched for the median's examples."""

_HASHES = 1 << 64


@dataclass(frozen=True, slots=True, order=True)
class Pick:
    """A row on the shortlist, ordered by least `key`, then `digest`."""

    key: float
    digest: int
    id: str = field(compare=False)
    score: float = field(compare=False)
    shard: int = field(compare=False)
    row: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Kind:
    """Examples of one kind: those of a level, or by their scores the least first, if `sign` is 1,
    the greatest, if it is -1, or the nearest to the median, if it is 0.
    """

    title: str
    level: int | None = None
    sign: int = 0

    @property
    def near_median(self) -> bool:
        """Whether they are chosen from a sample, once the median is known."""
        return self.level is None and self.sign == 0

    def keys(
        self, scores: npt.NDArray[np.float32], levels: npt.NDArray[np.int8]
    ) -> npt.NDArray[np.float64]:
        """Return the preference [n] of rows of `scores` [n]: least first, infinite never."""
        if self.level is not None:
            keys = np.where(levels == self.level, 0.0, np.inf)
        else:
            keys = self.sign * scores.astype(np.float64)
        return np.where(np.isfinite(scores), keys, np.inf)


def kinds_of(manifest: Manifest) -> list[Kind]:
    """Kinds of examples to show: each level, highest first, or the highest to the lowest scores."""
    edges = manifest.level_edges
    if edges:
        return [Kind(f"Level {level}", level) for level in range(edges.levels, 0, -1)]
    highest, lowest = Kind("Highest scores", sign=-1), Kind("Lowest scores", sign=1)
    return [highest, Kind("Around the median"), lowest]


class Shortlist:
    """The best `capacity` rows of each kind. For levels these are the least id hashes: effectively
    random, but the same in every run and for any number and order of shards.
    """

    def __init__(self, manifest: Manifest, capacity: int) -> None:
        self.capacity = capacity
        self._kinds = kinds_of(manifest)
        self._sample_below = min(_HASHES * _SAMPLE // max(manifest.rows, 1), _HASHES - 1)
        self.picks: list[list[Pick]] = [[] for _ in self._kinds]

    def add(
        self,
        ids: pa.Array,
        scores: npt.NDArray[np.float32],
        levels: npt.NDArray[np.int8],
        shard: int,
        first_row: int,
        bounds: list[Pick | None],
    ) -> None:
        """Add rows of `shard` from `first_row` on; those beyond a kind's bound may be skipped."""
        digests = hash_ids(ids)
        for i, (kind, own_bound) in enumerate(zip(self._kinds, self.bounds(), strict=True)):
            keys = kind.keys(scores, levels)
            if kind.near_median:
                rows = np.flatnonzero(
                    np.isfinite(keys) & (digests <= np.uint64(self._sample_below))
                ).tolist()
            else:
                rows = _best_rows(keys, digests, [own_bound, bounds[i]], self.capacity)
            picks: list[Pick] = []
            for row in rows:
                id_, score = ids[row].as_py() or "", float(scores[row])
                key, digest = float(keys[row]), int(digests[row])
                picks.append(Pick(key, digest, id_, score, shard, first_row + row))
            self._keep(i, picks)

    def merge(self, other: Self) -> None:
        """Add the picks of another part."""
        for i, picks in enumerate(other.picks):
            self._keep(i, picks)

    def _keep(self, kind: int, picks: list[Pick]) -> None:
        if self._kinds[kind].near_median:
            self.picks[kind] += picks
        elif picks:
            self.picks[kind] = sorted(self.picks[kind] + picks)[: self.capacity]

    def bounds(self) -> list[Pick | None]:
        """Last pick of each kind, or None if not full."""
        return [
            picks[-1] if len(picks) >= self.capacity and not kind.near_median else None
            for kind, picks in zip(self._kinds, self.picks, strict=True)
        ]

    def close(self, median: float) -> None:
        """Choose the sampled pairs nearest to `median`; nothing can be added afterwards."""
        for i, kind in enumerate(self._kinds):
            if kind.near_median:
                nearest = sorted(self.picks[i], key=lambda p: (abs(p.score - median), p.digest))
                self.picks[i] = nearest[: self.capacity]

    def to_json(self) -> dict[str, Any]:
        """Picks in order, as [id, score, shard, row]."""
        return {
            "capacity": self.capacity,
            "picks": [[[p.id, p.score, p.shard, p.row] for p in picks] for picks in self.picks],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], manifest: Manifest) -> Self:
        """Restore a closed shortlist from the output of `to_json`.

        Raises:
            KeyError, TypeError, ValueError, IndexError: invalid, or of another dataset.
        """
        shortlist = cls(manifest, int(fields["capacity"]))
        shortlist.picks = [
            [Pick(0.0, 0, str(i), float(s), int(shard), int(row)) for i, s, shard, row in picks]
            for picks in fields["picks"]
        ]
        if len(shortlist.picks) != len(shortlist._kinds):
            raise ValueError("it has examples of other kinds")
        for pick in (pick for picks in shortlist.picks for pick in picks):
            if not 0 <= pick.row < manifest.shards[pick.shard].rows:
                raise ValueError("it names a row that is not there")
        return shortlist


def _best_rows(
    keys: npt.NDArray[np.float64],
    digests: npt.NDArray[np.uint64],
    bounds: list[Pick | None],
    limit: int,
) -> list[int]:
    """At most `limit` rows of a batch that come before all `bounds`."""
    eligible = np.isfinite(keys)
    for bound in bounds:
        if bound is not None:
            closer = (keys == bound.key) & (digests < np.uint64(bound.digest))
            eligible &= (keys < bound.key) | closer
    rows = np.flatnonzero(eligible)
    order = np.lexsort((digests[rows], keys[rows]))[:limit]
    return rows[order].tolist()
