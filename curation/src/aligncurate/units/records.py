"""Records of units: each finished unit leaves its shard, rejects and a record, for resuming.

The record is written last. A unit without one is redone from the start; its partial files never
got their final names. A failed unit leaves a record of the reason instead.

A `UnitError` fails one unit while the others continue; any other AlignError, such as a full
disk, ends the run.
"""

import errno
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from aligncurate.output.folder import (
    WrittenRejects,
    add_reasons,
    provenance,
    release_output,
    shard_name,
    write_rejects,
)
from aligncurate.settings import OnProgress, silent
from aligncurate.threads import heartbeat
from alignshared import AlignError, Manifest, Parent, Reject, ShardInfo, Storage
from alignshared.errors import one_line
from alignshared.manifest import RUN_FOLDER
from alignshared.shards import writing_shard
from alignshared.stores.lock import release

UNIT_ATTEMPTS = 3
"""Attempts at a unit, whatever the error, before it counts as failed."""

RETRY_PAUSE_S = 0.25
"""Seconds before the second attempt, doubled for each further one."""

_RECORDS_FOLDER = f"{RUN_FOLDER}/units"
FAILURES_FOLDER = f"{RUN_FOLDER}/failed"
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of work, summed over threads: reading and decoding, and forward passes."""

    decode_s: float = 0.0
    model_s: float = 0.0

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(self.decode_s + other.decode_s, self.model_s + other.model_s)


@dataclass(frozen=True, slots=True)
class FinishedBatch:
    """Rows ready to write, the rejects, and the time taken."""

    table: pa.Table
    rejects: list[Reject]
    timing: Timing

    @property
    def rows_in(self) -> int:
        """Number of rows read: rows out and rejects."""
        return self.table.num_rows + len(self.rejects)


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """A finished unit: its shard, its rejects and the stage's counts as JSON."""

    index: int
    shard: ShardInfo
    rejects: WrittenRejects
    timing: Timing
    counts: Any = None

    @property
    def rows_in(self) -> int:
        """Number of rows read: rows out and rejects."""
        return self.shard.rows + self.reject_count

    @property
    def reject_count(self) -> int:
        """Number of rows rejected."""
        return sum(self.rejects.reasons.values())


_RECORD = TypeAdapter(UnitRecord)


class Stalled(Exception):
    """Work in progress timed out; its threads cannot be stopped."""


class UnitError(Exception):
    """Failure of a unit; the message is the reason."""


class OutputError(AlignError):
    """Failure to write the output; `lasting` if a retry would fail too."""

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class UnitFailure:
    """A failed unit and the reason."""

    index: int
    reason: str


@contextmanager
def unit_errors() -> Generator[None, None, None]:
    """Raise any error in the block as a UnitError of the current unit."""
    try:
        yield
    except (UnitError, Stalled):
        raise
    except Exception as error:
        raise UnitError(describe_error(error)) from error


def describe_error(error: BaseException) -> str:
    """Message of `error` on one line, with the type for errors not raised by AlignStack."""
    message = " ".join(str(error).split())[:500]
    if isinstance(error, AlignError | UnitError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def write_unit(
    output: Storage,
    index: int,
    schema: pa.Schema,
    batches: Iterable[FinishedBatch],
    *,
    file: str | None = None,
    counts: Callable[[], Any] | None = None,
    on_progress: OnProgress = silent,
) -> UnitRecord:
    """Write the shard, rejects and record of unit `index`, consuming `batches` one at a time.

    `file` overrides the shard name of `index`; `counts` is called after the last batch and
    returns the JSON kept in the record.

    Raises:
        UnitError: `batches` raised something.
        AlignError: the disk is full, or the output is no longer writable.
    """
    name = file or shard_name(index)
    rejects: list[Reject] = []
    timing = Timing()
    with _writing(output, name):
        with writing_shard(output, name, schema) as (writer, result):
            for batch in _blaming_the_unit(batches):
                writer.write(batch.table)
                rejects += batch.rejects
                timing += batch.timing
                heartbeat()
                on_progress(batch.rows_in, len(batch.rejects))
        written_rejects = write_rejects(output, name, rejects)
        record = UnitRecord(index, result.info, written_rejects, timing, counts and counts())
        write_record(output, index, asdict(record))
    return record


def manifest_of(
    stage: str, config: dict[str, Any], parent: Parent, records: Sequence[UnitRecord], **others: Any
) -> Manifest:
    """Manifest, unwritten, of a dataset made of the units `records`."""
    return Manifest(
        stage=stage,
        config=config,
        parents=[parent],
        rows=sum(record.shard.rows for record in records),
        rejects=add_reasons(record.rejects.reasons for record in records),
        shards=[record.shard for record in records],
        reject_shards=[r.rejects.info for r in records if r.rejects.info is not None],
        **provenance(),
        **others,
    )


def write_record(output: Storage, index: int, record: dict[str, Any]) -> None:
    """Write the record of part `index`, which marks it as finished."""
    output.write_json(f"{_RECORDS_FOLDER}/{index:07d}.json", record)


def read_records(output: Storage) -> Iterator[bytes]:
    """Read the records of earlier runs in `output`, as JSON, in order."""
    folder = output.child(_RECORDS_FOLDER)
    for name in folder.names():
        if name.endswith(".json"):
            yield folder.read_bytes(name)


@contextmanager
def _writing(output: Storage, name: str) -> Generator[None, None, None]:
    """Raise an OSError in the block as an OutputError that names `name`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{name} cannot be written in {output.location}: {one_line(error)}; make room or "
            "access, and run the same command to resume.",
            lasting=error.errno in _LASTING,
        ) from error


def _blaming_the_unit(batches: Iterable[FinishedBatch]) -> Iterator[FinishedBatch]:
    """Yield `batches`, raising their errors as UnitError but not those of writing them."""
    iterator = iter(batches)
    while True:
        with unit_errors():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


@contextmanager
def released_if_empty(output: Storage) -> Generator[None, None, None]:
    """Unlock `output` after the block; if it fails before any unit is finished, also give up the
    claim.
    """
    try:
        yield
    except BaseException:
        # An unreachable server must not hide why the run failed.
        with suppress(AlignError, OSError):
            if not output.child(_RECORDS_FOLDER).names() and not failed_units(output):
                release_output(output)
        raise
    finally:
        release(output)


def record_failure(output: Storage, failure: UnitFailure) -> None:
    """Record a unit's failure; later runs skip it unless told to retry failed units.

    Raises:
        AlignError: the output is no longer writable.
    """
    name = f"{FAILURES_FOLDER}/{failure.index:07d}.json"
    with _writing(output, name):
        output.write_json(name, asdict(failure))


def failed_units(output: Storage) -> dict[int, UnitFailure]:
    """Units that failed in earlier runs, by index."""
    folder = output.child(FAILURES_FOLDER)
    names = [name for name in folder.names() if name.endswith(".json")]
    failures = [UnitFailure(**folder.read_json(name)) for name in names]
    return {failure.index: failure for failure in failures}


def finished_units(output: Storage) -> Iterator[UnitRecord]:
    """Units finished by earlier runs in `output`, in order, excluding those whose shard is
    missing.
    """
    files = frozenset(output.names())
    for record in map(_RECORD.validate_json, read_records(output)):
        if record.shard.file in files:
            yield record
