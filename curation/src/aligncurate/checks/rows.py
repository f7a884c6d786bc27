"""Checks of shard rows: their number, unique ids, scores in [-1, 1] and levels."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import nsmallest
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.checks.columns import check_same_columns, usable
from aligncurate.checks.files import UNREADABLE, check_file, open_parquet, unreadable
from aligncurate.checks.problems import LISTED_PER_KIND, Kind, Problem
from aligncurate.core.idhash import RepeatFinder, hash_ids, rows_among
from aligncurate.core.vectors import column_values
from aligncurate.output.shards import scores_of
from aligncurate.settings import OnProgress
from alignshared import Dataset, InputError, LevelEdges, ShardInfo, Storage
from alignshared.levels import LevelAccumulator
from alignshared.schema import LEVEL_COLUMN, SCORE_COLUMN

_BATCH_ROWS = 1 << 16

_TOLERANCE = 1e-4
"""Rounding tolerance for the cosine of two float32 unit vectors beyond [-1, 1]."""

_ID_CHARACTERS = 60

_MOST_CONFIRMED = 10_000
"""Repeated hashes whose ids are read again; each id stays in memory until the end."""


def first_schema(dataset: Dataset, shards: list[ShardInfo]) -> pa.Schema | None:
    """Schema of the first readable shard of `shards`."""
    for shard in shards:
        with (
            suppress(*UNREADABLE, InputError),
            open_parquet(dataset.storage, shard.file) as parquet,
        ):
            return parquet.schema_arrow
    return None


@dataclass(slots=True)
class _Fault:
    """A fault that rows of a shard may have: their number, and the first such row."""

    kind: Kind
    what: str
    count: int = 0
    first: str = ""

    def add(self, faulty: npt.NDArray[np.bool_], batch: pa.RecordBatch, first_row: int) -> None:
        """Count the rows of `batch` flagged in `faulty` [n]."""
        count = int(np.count_nonzero(faulty))
        if count and not self.count:
            row = int(np.argmax(faulty))
            name = f" ({_id_text(batch.column('id')[row])})" if "id" in batch.schema.names else ""
            self.first = f"row {first_row + row:,}{name}"
        self.count += count

    def problem(self, file: str) -> Problem:
        """The fault in one sentence."""
        first = f"{self.first} is the first" if self.count > 1 else self.first
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        return Problem(self.kind, f"{file} has {rows} with {self.what}: {first}.")


class ShardFindings:
    """Findings in one shard, batch by batch; `whole` is True if every row could be read."""

    def __init__(self, edges: LevelEdges | None) -> None:
        self.problems: list[Problem] = []
        self.rows = 0
        self.whole = False
        self.levels = LevelAccumulator(edges.levels) if edges else None
        self._edges = edges
        top = edges.levels if edges else 0
        self._by = by = edges.by if edges else SCORE_COLUMN
        self._faults = (
            _Fault(Kind.IDS, "no id"),
            _Fault(Kind.IDS, "an id that is not UTF-8"),
            _Fault(Kind.SCORES, "a score that is null, NaN or infinite"),
            _Fault(Kind.SCORES, "a score outside -1 to 1"),
            _Fault(Kind.LEVELS, f"a level that is not one of 1 to {top}"),
            _Fault(Kind.LEVELS, f"another level than the edges give the {by}"),
            _Fault(Kind.SCORES, f"a {by} that is null, NaN or infinite"),
        )
        self._null_ids, self._not_utf8, self._not_finite, self._out_of_range = self._faults[:4]
        self._no_level, self._other_level, self._by_not_finite = self._faults[4:]

    def check(self, batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
        """Check the next `batch`; return the hashes of its non-null ids."""
        names = batch.schema.names
        hashes = self._check_ids(batch) if "id" in names else np.empty(0, np.uint64)
        if SCORE_COLUMN in names:
            scores = scores_of(batch)
            finite = np.isfinite(scores)
            # With levels by another column, a pair may have no score.
            if self._by == SCORE_COLUMN:
                self._not_finite.add(~finite, batch, self.rows)
            beyond = finite & (np.abs(scores) > 1 + _TOLERANCE)
            self._out_of_range.add(beyond, batch, self.rows)
        if self._edges and self.levels and {self._by, LEVEL_COLUMN} <= {*names}:
            self._check_levels(batch, self._edges, self.levels)
        self.rows += batch.num_rows
        return hashes

    def _check_levels(
        self, batch: pa.RecordBatch, edges: LevelEdges, counts: LevelAccumulator
    ) -> None:
        scores = scores_of(batch, edges.by)
        finite = np.isfinite(scores)
        if edges.by != SCORE_COLUMN:
            self._by_not_finite.add(~finite, batch, self.rows)
        levels = column_values(batch.column(LEVEL_COLUMN), 0)
        known = (levels >= 1) & (levels <= edges.levels)
        self._no_level.add(~known, batch, self.rows)
        countable = known & finite
        other = countable & (levels != edges.assign(scores))
        self._other_level.add(other, batch, self.rows)
        counts.add(scores[countable], levels[countable])

    def _check_ids(self, batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
        ids = batch.column("id")
        if ids.null_count:
            null = column_values(ids.is_null().cast(pa.uint8()), 0) == 1
            self._null_ids.add(null, batch, self.rows)
        if _is_invalid(ids):
            wrong = np.array([_is_invalid(ids.slice(row, 1)) for row in range(len(ids))])
            self._not_utf8.add(wrong, batch, self.rows)
        return hash_ids(ids.drop_null())

    def close(self, file: str) -> None:
        """Add a problem for each fault that rows of the shard, in `file`, have."""
        self.problems += [fault.problem(file) for fault in self._faults if fault.count]


@dataclass(frozen=True)
class RowChecker:
    """Checks shards; may be called from several threads.

    Hashes of all ids go to `repeats`; everything else is in the findings of each shard. `schema`
    is that of the first readable shard.
    """

    storage: Storage
    schema: pa.Schema
    edges: LevelEdges | None
    repeats: RepeatFinder
    on_progress: OnProgress
    lock: Lock = field(default_factory=Lock)

    def __call__(self, shard: ShardInfo) -> ShardFindings:
        """Check the bytes, columns and rows of `shard`."""
        findings = ShardFindings(self.edges)
        damage = check_file(self.storage, shard)
        findings.problems += [damage] if damage else []
        try:
            self._check_content(shard, findings)
        except (*UNREADABLE, InputError) as error:
            findings.problems += [] if damage else [unreadable(shard.file, error)]
        findings.close(shard.file)
        return findings

    def _check_content(self, shard: ShardInfo, findings: ShardFindings) -> None:
        with open_parquet(self.storage, shard.file) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
            if rows != shard.rows:
                text = f"{shard.file} has {rows:,} rows and the manifest says {shard.rows:,}"
                findings.problems.append(
                    Problem(Kind.ROWS, f"{text}; copy it again or write the dataset again.")
                )
            if difference := check_same_columns(schema, self.schema, shard.file):
                findings.problems.append(difference)
            by = self.edges.by if self.edges else SCORE_COLUMN
            wanted = dict.fromkeys(("id", SCORE_COLUMN, by, LEVEL_COLUMN))
            names = [name for name in wanted if usable(schema, name)]
            if not names:  # pyarrow would invent as many empty rows as a damaged footer claims
                return
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=names):
                hashes = findings.check(batch)
                with self.lock:
                    self.repeats.add(hashes)
                    self.on_progress(batch.num_rows)
            findings.whole = rows == shard.rows


def _is_invalid(ids: pa.Array) -> bool:
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid:
        return True
    return False


def _id_text(value: pa.Scalar) -> str:
    """An id for use in a sentence: quoted, escaped, shortened."""
    raw: bytes | None = value.cast(pa.binary()).as_py()
    if raw is None:
        return "its id is null"
    text = raw[: 4 * _ID_CHARACTERS].decode("utf-8", "replace")
    shown = text if len(text) <= _ID_CHARACTERS else f"{text[:_ID_CHARACTERS]}…"
    return f"id {shown!r}"


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
            rows = rows_among(candidates, hash_ids(ids))
            _note(seen, ids, rows, index, first_row)
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
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=["id"]):
                yield first_row, batch.column(0)
                first_row += batch.num_rows
    except (*UNREADABLE, InputError):
        return  # reported by the check of rows


def _note(
    seen: dict[bytes, _Seen], ids: pa.Array, rows: npt.NDArray[np.intp], shard: int, first_row: int
) -> None:
    """Count the ids in `rows` of a batch that begins at `first_row` of `shard`."""
    if not len(rows):
        return
    taken = ids.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)]))
    encoded = taken.cast(pa.binary()).dictionary_encode()
    codes = column_values(encoded.indices, -1)
    by_id = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[by_id], np.arange(len(encoded.dictionary) + 1))
    for value, begin, end in zip(encoded.dictionary.to_pylist(), starts, starts[1:], strict=False):
        at = by_id[begin:end]
        entry = seen.get(value)
        if entry is None:
            entry = seen[value] = _Seen(_id_text(taken[int(at[0])]), 0, [])
        entry.count += len(at)
        for row in at[: 2 - len(entry.places)]:
            entry.places.append((shard, first_row + int(rows[row])))
