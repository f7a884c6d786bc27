"""Choosing example pairs: the same ones for every layout of shards, in memory for the examples
alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from aligncurate.core.histogram import Histogram
from aligncurate.core.idhash import hash_ids
from aligncurate.local import available_cores, map_ordered
from aligncurate.progress import OnProgress, silent
from aligncurate.reporting.rows import read_rows
from aligncurate.reporting.summary import level_values, score_values
from alignshared import Dataset, ShardInfo
from alignshared.schema import LEVEL_COLUMN

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Example:
    """One chosen pair; `caption`, `image` and `path` are filled in when its row is read."""

    id: str
    score: float
    caption: str = ""
    image: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Examples under one heading, the highest score first; `level` is None without levels."""

    title: str
    level: int | None
    examples: list[Example]


@dataclass(frozen=True, slots=True, order=True)
class _Pick:
    """A row on the shortlist, in the order of preference: least `key` first, `digest` breaks
    ties.
    """

    key: float
    digest: int
    example: Example = field(compare=False)
    shard: int = field(compare=False)
    row: int = field(compare=False)


_Rank = Callable[[npt.NDArray[np.float32], npt.NDArray[np.int8]], npt.NDArray[np.float64]]
"""Preference [n] for rows by scores [n] and levels [n]: the least are taken, infinite never."""


@dataclass(frozen=True, slots=True)
class _Kind:
    title: str
    level: int | None
    rank: _Rank


def choose_examples(
    dataset: Dataset, histogram: Histogram, examples: int, on_progress: OnProgress = silent
) -> list[Group]:
    """Up to `examples` pairs of each level, the highest level first.

    A level's examples are those whose ids have the least hashes: as good as drawn at random, yet
    the same in every run and for any number and order of shards. A dataset without levels gives its
    highest, its most ordinary (nearest to the median of `histogram`) and its lowest pairs.
    """
    kinds = _kinds(dataset, histogram)
    shortlists: list[list[_Pick]] = [[] for _ in kinds]
    shards = dataset.manifest.shards
    parts = map_ordered(
        lambda numbered: _shortlist_shard(dataset, numbered[0], numbered[1], kinds, examples),
        enumerate(shards),
        workers=available_cores(),
    )
    for shard, part in zip(shards, parts, strict=True):
        shortlists = [sorted(a + b)[:examples] for a, b in zip(shortlists, part, strict=True)]
        on_progress(shard.rows)
    return _read_groups(dataset, kinds, shortlists)


def _kinds(dataset: Dataset, histogram: Histogram) -> list[_Kind]:
    edges = dataset.manifest.level_edges
    if edges:
        return [_level_kind(level) for level in range(edges.levels, 0, -1)]
    median = histogram.quantile(0.5) if histogram.count else 0.0
    return [
        _Kind("Highest scores", None, lambda scores, _: -scores.astype(np.float64)),
        _Kind(
            "Around the median", None, lambda scores, _: np.abs(scores.astype(np.float64) - median)
        ),
        _Kind("Lowest scores", None, lambda scores, _: scores.astype(np.float64)),
    ]


def _level_kind(level: int) -> _Kind:
    return _Kind(f"Level {level}", level, lambda _, levels: np.where(levels == level, 0.0, np.inf))


def _shortlist_shard(
    dataset: Dataset, index: int, shard: ShardInfo, kinds: list[_Kind], examples: int
) -> list[list[_Pick]]:
    edges = dataset.manifest.level_edges
    columns = ["id", "score", LEVEL_COLUMN] if edges else ["id", "score"]
    where = f"{shard.file} in {dataset.location}"
    best: list[list[_Pick]] = [[] for _ in kinds]
    first_row = 0
    with dataset.open_shard(shard) as parquet:
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            scores, digests = score_values(batch), hash_ids(batch.column("id"))
            levels = (
                level_values(batch, edges.levels, where)
                if edges
                else np.zeros(len(scores), dtype=np.int8)
            )
            for i, kind in enumerate(kinds):
                keys = kind.rank(scores, levels)
                found = [
                    _Pick(
                        float(keys[row]),
                        int(digests[row]),
                        Example(batch.column("id")[row].as_py() or "", float(scores[row])),
                        index,
                        first_row + row,
                    )
                    for row in _best_rows(keys, digests, best[i], examples)
                ]
                best[i] = sorted(best[i] + found)[:examples]
            first_row += batch.num_rows
    return best


def _best_rows(
    keys: npt.NDArray[np.float64],
    digests: npt.NDArray[np.uint64],
    best: list[_Pick],
    examples: int,
) -> list[int]:
    """Rows of a batch, at most `examples`, that would enter a shortlist that holds `best`."""
    eligible = np.isfinite(keys)
    if len(best) >= examples:
        worst = best[-1]
        closer = (keys == worst.key) & (digests < np.uint64(worst.digest))
        eligible &= (keys < worst.key) | closer
    rows = np.flatnonzero(eligible)
    order = np.lexsort((digests[rows], keys[rows]))[:examples]
    return rows[order].tolist()


def _read_groups(
    dataset: Dataset, kinds: list[_Kind], shortlists: list[list[_Pick]]
) -> list[Group]:
    wanted = {(pick.shard, pick.row) for picks in shortlists for pick in picks}
    rows = dict(read_rows(dataset, wanted, ("caption", "image")))
    groups = []
    for kind, picks in zip(kinds, shortlists, strict=True):
        examples = [_filled(pick.example, rows[pick.shard, pick.row]) for pick in picks]
        examples.sort(key=lambda example: (-example.score, example.id))
        groups.append(Group(kind.title, kind.level, examples))
    return groups


def _filled(example: Example, row: dict[str, object]) -> Example:
    image = row.get("image")
    data, path = (
        (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
    )
    return replace(example, caption=row.get("caption") or "", image=data, path=path)
