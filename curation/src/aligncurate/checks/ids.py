"""Uniqueness of ids over all shards: candidates by hash, confirmed by id."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nsmallest

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.checks.columns import usable
from aligncurate.checks.files import UNREADABLE, open_parquet
from aligncurate.checks.problems import LISTED_PER_KIND, Kind, Problem
from aligncurate.checks.rows import BATCH_ROWS, id_text
from aligncurate.core.idhash import RepeatFinder, hash_ids
from aligncurate.core.vectors import column_values
from alignshared import Dataset, InputError, ShardInfo

_MOST_CONFIRMED = 10_000
"""Repeated hashes whose ids are read again; each id stays in memory until the end."""


@dataclass(slots=True)
class _Seen:
    """A possibly repeated id: its count and first two places."""

    shown: str
    count: int
    places: list[tuple[int, int]]


def check_unique(dataset: Dataset, shards: list[ShardInfo], repeats: RepeatFinder) -> list[Problem]:
    """Return the first repeated ids of `shards`, and the number of all repeated ids.

    `repeats` holds the hashes of all ids. Hash collisions are not reported.
    """
    candidates = repeats.repeated(_MOST_CONFIRMED)
    if not len(candidates):
        return []
    seen: dict[bytes, _Seen] = {}
    for index, shard in enumerate(shards):
        for first_row, ids in _id_batches(dataset, shard):
            _note(seen, ids, _positions(hash_ids(ids), candidates), (index, first_row))
    repeated = [entry for entry in seen.values() if entry.count > 1]
    if not repeated:
        return []
    at_least = "at least " if len(candidates) == _MOST_CONFIRMED else ""
    first = nsmallest(LISTED_PER_KIND - 1, repeated, key=lambda entry: entry.places)
    problems = [_told(entry, shards) for entry in first]
    if len(repeated) > len(first):
        text = f"{at_least}{len(repeated):,} ids in all occur more than once; ids must be unique."
        problems.append(Problem(Kind.IDS, text))
    return problems


def _told(entry: _Seen, shards: list[ShardInfo]) -> Problem:
    places = " and ".join(f"row {row:,} of {shards[index].file}" for index, row in entry.places)
    often = "twice, in" if entry.count == 2 else f"{entry.count:,} times, first in"
    return Problem(Kind.IDS, f"{entry.shown} occurs {often} {places}; ids must be unique.")


def _id_batches(dataset: Dataset, shard: ShardInfo) -> Iterator[tuple[int, pa.Array]]:
    """Yield first row and ids of each readable batch of `shard`."""
    first_row = 0
    try:
        with open_parquet(dataset.storage, shard.file) as parquet:
            if not usable(parquet.schema_arrow, "id"):
                return
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=["id"]):
                yield first_row, batch.column(0)
                first_row += batch.num_rows
    except (*UNREADABLE, InputError):
        return  # reported by the check of rows


def _positions(
    hashes: npt.NDArray[np.uint64], candidates: npt.NDArray[np.uint64]
) -> npt.NDArray[np.intp]:
    """Rows of `hashes` [n] that are among the sorted `candidates` [c]."""
    at = np.searchsorted(candidates, hashes)
    return np.flatnonzero(candidates[np.minimum(at, len(candidates) - 1)] == hashes)


def _note(
    seen: dict[bytes, _Seen],
    ids: pa.Array,
    rows: npt.NDArray[np.intp],
    where: tuple[int, int],
) -> None:
    """Count the ids in `rows` of a batch; `where` is the shard's index and the batch's first
    row.
    """
    if not len(rows):
        return
    shard, first_row = where
    taken = ids.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)]))
    encoded = taken.cast(pa.binary()).dictionary_encode()
    codes = column_values(encoded.indices, -1)
    by_id = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[by_id], np.arange(len(encoded.dictionary) + 1))
    for value, begin, end in zip(encoded.dictionary.to_pylist(), starts, starts[1:], strict=False):
        at = by_id[begin:end]
        entry = seen.get(value)
        if entry is None:
            entry = seen[value] = _Seen(id_text(taken[int(at[0])]), 0, [])
        entry.count += len(at)
        for row in at[: 2 - len(entry.places)]:
            entry.places.append((shard, first_row + int(rows[row])))
