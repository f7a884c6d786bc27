"""Checks of shard rows: their number, ids, scores in [-1, 1] and levels."""

from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.checks.columns import check_same_columns, usable
from aligncurate.checks.files import UNREADABLE, check_file, open_parquet, unreadable
from aligncurate.checks.problems import Kind, Problem
from aligncurate.core.idhash import RepeatFinder, hash_ids
from aligncurate.core.vectors import column_values
from aligncurate.settings import OnProgress
from alignshared import Dataset, InputError, LevelEdges, ShardInfo
from alignshared.levels import LevelAccumulator
from alignshared.schema import LEVEL_COLUMN

BATCH_ROWS = 1 << 16

_TOLERANCE = 1e-4
"""Rounding tolerance for the cosine of two float32 unit vectors beyond [-1, 1]."""

_ID_CHARACTERS = 60


@dataclass(slots=True)
class ShardFindings:
    """Findings in one shard; `whole` is True if every row could be read."""

    problems: list[Problem] = field(default_factory=list[Problem])
    rows: int = 0
    whole: bool = False
    levels: LevelAccumulator | None = None


class RowChecker:
    """Checks shards; may be called from several threads.

    Hashes of all ids go to `repeats`; everything else is in the findings of each shard. `schema`
    is that of the first readable shard.
    """

    def __init__(
        self,
        dataset: Dataset,
        schema: pa.Schema,
        edges: LevelEdges | None,
        repeats: RepeatFinder,
        on_progress: OnProgress,
    ) -> None:
        self._storage = dataset.storage
        self._schema = schema
        self._edges = edges
        self._repeats = repeats
        self._on_progress = on_progress
        self._lock = Lock()

    def __call__(self, shard: ShardInfo) -> ShardFindings:
        """Check the bytes, columns and rows of `shard`."""
        findings = ShardFindings()
        damage = check_file(self._storage, shard)
        if damage:
            findings.problems.append(damage)
        try:
            self._check_content(shard, findings)
        except (*UNREADABLE, InputError) as error:
            if not damage:
                findings.problems.append(unreadable(shard.file, error))
        return findings

    def _check_content(self, shard: ShardInfo, findings: ShardFindings) -> None:
        with open_parquet(self._storage, shard.file) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
            if rows != shard.rows:
                text = f"{shard.file} has {rows:,} rows and the manifest says {shard.rows:,}"
                findings.problems.append(
                    Problem(Kind.ROWS, f"{text}; copy it again or write the dataset again.")
                )
            if difference := check_same_columns(schema, self._schema, shard.file):
                findings.problems.append(difference)
            names = [name for name in ("id", "score", LEVEL_COLUMN) if usable(schema, name)]
            if not names:  # pyarrow would invent as many empty rows as a damaged footer claims
                return
            batches = _BatchChecker(shard.file, self._edges)
            findings.levels = batches.levels
            try:
                for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=names):
                    hashes = batches.check(batch)
                    findings.rows += batch.num_rows
                    self._report(hashes, batch.num_rows)
            finally:
                findings.problems += batches.problems()
            findings.whole = rows == shard.rows

    def _report(self, hashes: npt.NDArray[np.uint64], rows: int) -> None:
        with self._lock:
            self._repeats.add(hashes)
            self._on_progress(rows)


class _Tally:
    """Number of rows with one fault, and the first such row."""

    def __init__(self, kind: Kind, what: str) -> None:
        self._kind = kind
        self._what = what
        self._count = 0
        self._first = ""

    def add(self, faulty: npt.NDArray[np.bool_], batch: pa.RecordBatch, first_row: int) -> None:
        """Count the rows of `batch` flagged in `faulty` [n]."""
        count = int(np.count_nonzero(faulty))
        if count and not self._count:
            row = int(np.argmax(faulty))
            name = f" ({id_text(batch.column('id')[row])})" if "id" in batch.schema.names else ""
            self._first = f"row {first_row + row:,}{name}"
        self._count += count

    def problem(self, file: str) -> Problem | None:
        """The fault in one sentence; None if no row has it."""
        if not self._count:
            return None
        first = f"{self._first} is the first" if self._count > 1 else self._first
        rows = "1 row" if self._count == 1 else f"{self._count:,} rows"
        return Problem(self._kind, f"{file} has {rows} with {self._what}: {first}.")


class _BatchChecker:
    """Checks the batches of one shard, in order."""

    def __init__(self, file: str, edges: LevelEdges | None) -> None:
        self._file = file
        self._edges = edges
        self._row = 0
        self.levels = LevelAccumulator(edges.levels) if edges else None
        top = edges.levels if edges else 0
        self._null_ids = _Tally(Kind.IDS, "no id")
        self._not_utf8 = _Tally(Kind.IDS, "an id that is not UTF-8")
        self._not_finite = _Tally(Kind.SCORES, "a score that is null, NaN or infinite")
        self._out_of_range = _Tally(Kind.SCORES, "a score outside -1 to 1")
        self._no_level = _Tally(Kind.LEVELS, f"a level that is not one of 1 to {top}")
        self._other_level = _Tally(Kind.LEVELS, "another level than the edges give the score")

    def check(self, batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
        """Check `batch`; return the hashes of its non-null ids."""
        names = batch.schema.names
        hashes = self._check_ids(batch) if "id" in names else np.empty(0, np.uint64)
        if "score" in names:
            scores = column_values(batch.column("score"), np.nan)
            finite = np.isfinite(scores)
            self._not_finite.add(~finite, batch, self._row)
            beyond = finite & (np.abs(scores) > 1 + _TOLERANCE)
            self._out_of_range.add(beyond, batch, self._row)
            if self._edges and self.levels and LEVEL_COLUMN in names:
                self._check_levels(batch, scores, finite, self._edges, self.levels)
        self._row += batch.num_rows
        return hashes

    def _check_ids(self, batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
        ids = batch.column("id")
        if ids.null_count:
            self._null_ids.add(
                column_values(ids.is_null().cast(pa.uint8()), 0) == 1, batch, self._row
            )
        if _is_invalid(ids):
            wrong = np.array([_is_invalid(ids.slice(row, 1)) for row in range(len(ids))])
            self._not_utf8.add(wrong, batch, self._row)
        return hash_ids(ids.drop_null())

    def _check_levels(
        self,
        batch: pa.RecordBatch,
        scores: npt.NDArray[np.float32],
        finite: npt.NDArray[np.bool_],
        edges: LevelEdges,
        totals: LevelAccumulator,
    ) -> None:
        levels = column_values(batch.column(LEVEL_COLUMN), 0)
        known = (levels >= 1) & (levels <= edges.levels)
        self._no_level.add(~known, batch, self._row)
        countable = known & finite
        self._other_level.add(countable & (levels != edges.assign(scores)), batch, self._row)
        totals.add(scores[countable], levels[countable])

    def problems(self) -> list[Problem]:
        """One problem for each fault found."""
        tallies = (
            self._null_ids,
            self._not_utf8,
            self._not_finite,
            self._out_of_range,
            self._no_level,
            self._other_level,
        )
        problems = (tally.problem(self._file) for tally in tallies)
        return [problem for problem in problems if problem]


def _is_invalid(ids: pa.Array) -> bool:
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid:
        return True
    return False


def id_text(value: pa.Scalar) -> str:
    """An id for use in a sentence: quoted, escaped, shortened."""
    raw: bytes | None = value.cast(pa.binary()).as_py()
    if raw is None:
        return "its id is null"
    text = raw[: 4 * _ID_CHARACTERS].decode("utf-8", "replace")
    shown = text if len(text) <= _ID_CHARACTERS else f"{text[:_ID_CHARACTERS]}…"
    return f"id {shown!r}"


def first_schema(dataset: Dataset, shards: list[ShardInfo]) -> pa.Schema | None:
    """Schema of the first readable shard of `shards`."""
    return next(
        (schema for shard in shards if (schema := _schema_of(dataset, shard)) is not None), None
    )


def _schema_of(dataset: Dataset, shard: ShardInfo) -> pa.Schema | None:
    try:
        with open_parquet(dataset.storage, shard.file) as parquet:
            return parquet.schema_arrow
    except (*UNREADABLE, InputError):
        return None
