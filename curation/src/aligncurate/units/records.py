"""Units that are finished: each leaves its shard, its rejects and a record, so that a run can go
on.

The record is written last. A unit without one is done again from the start; its half-written files
were never given their names. A unit that cannot be done leaves a record of why instead.

What fails is told apart: a `UnitError` is the fault of one unit, and the others go on; any other
AlignError, such as a full disk, is the end of the run, and no unit's fault.
"""

import errno
import json
import posixpath
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from aligncurate.output.folder import (
    RUN_FOLDER,
    WrittenRejects,
    close_output,
    release_output,
    shard_name,
    write_rejects,
)
from aligncurate.progress import OnProgress, silent
from aligncurate.threads import Stalled, beat
from alignshared import AlignError, Reject, ShardInfo, Storage
from alignshared.filesystems import one_line
from alignshared.shards import writing_shard

UNIT_ATTEMPTS = 3
"""How often a unit is tried, whatever it fails of, before it counts as failed."""

_RECORDS_FOLDER = f"{RUN_FOLDER}/units"
_FAILURES_FOLDER = f"{RUN_FOLDER}/failed"
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of work, summed over threads: reading and decoding, and the model's forward
    passes.
    """

    decode_s: float = 0.0
    model_s: float = 0.0

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(self.decode_s + other.decode_s, self.model_s + other.model_s)


@dataclass(frozen=True, slots=True)
class FinishedBatch:
    """Rows that are ready to be written, the rejects among the rows read, and what it took."""

    table: pa.Table
    rejects: list[Reject]
    timing: Timing

    @property
    def rows_in(self) -> int:
        """Rows that were read: rows out and rejects."""
        return self.table.num_rows + len(self.rejects)


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """A finished unit: its shard and its rejects."""

    index: int
    shard: ShardInfo
    rejects: WrittenRejects
    timing: Timing

    @property
    def rows_in(self) -> int:
        """Rows that were read: rows out and rejects."""
        return self.shard.rows + self.reject_count

    @property
    def reject_count(self) -> int:
        """How many of the rows read were rejected."""
        return sum(self.rejects.reasons.values())


class UnitError(Exception):
    """A unit cannot be done; the message is the reason."""


class OutputError(AlignError):
    """The output cannot be written to; `lasting` if another attempt would meet the same."""

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class UnitFailure:
    """A unit that could not be done, and why."""

    index: int
    reason: str


@contextmanager
def unit_errors() -> Generator[None, None, None]:
    """What goes wrong inside is the fault of the unit in hand: raised as a UnitError."""
    try:
        yield
    except (UnitError, Stalled):
        raise
    except Exception as error:
        raise UnitError(why(error)) from error


def why(error: BaseException) -> str:
    """What `error` says in one line, with its type where the message is not ours."""
    said = " ".join(str(error).split())[:500]
    if isinstance(error, AlignError | UnitError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def write_unit(
    output: Storage,
    index: int,
    schema: pa.Schema,
    batches: Iterable[FinishedBatch],
    on_progress: OnProgress = silent,
) -> UnitRecord:
    """Write the shard, the rejects and the record of unit `index`, taking `batches` one at a
    time.

    Raises:
        UnitError: `batches` raised something.
        AlignError: the disk is full, or the output cannot be written to any more.
    """
    name = shard_name(index)
    rejects: list[Reject] = []
    timing = Timing()
    try:
        with writing_shard(output, name, schema) as (writer, result):
            for batch in _blamed(batches):
                writer.write(batch.table)
                rejects += batch.rejects
                timing += batch.timing
                beat()
                on_progress(batch.rows_in, len(batch.rejects))
        record = UnitRecord(index, result.info, write_rejects(output, name, rejects), timing)
        output.write_json(_record_file(index), asdict(record))
    except OSError as error:
        raise _not_written(output, name, error) from error
    return record


def _not_written(output: Storage, name: str, error: OSError) -> OutputError:
    return OutputError(
        f"{name} cannot be written in {output.location}: {one_line(error)}; make room or access, "
        "and run the same command to go on.",
        lasting=error.errno in _LASTING,
    )


def _blamed(batches: Iterable[FinishedBatch]) -> Iterator[FinishedBatch]:
    """`batches`, whose errors are the unit's; errors of what is done with them are not."""
    iterator = iter(batches)
    while True:
        with unit_errors():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


@contextmanager
def released_if_empty(output: Storage) -> Generator[None, None, None]:
    """However what is done inside ends, `output` is unlocked; where it fails before a unit is
    finished, `output` is as good as new.
    """
    try:
        yield
    except BaseException:
        with suppress(
            AlignError, OSError
        ):  # a server that is gone must not hide why the run failed
            if not any(finished_units(output)) and not failed_units(output):
                release_output(output)
        raise
    finally:
        close_output(output)


def record_failure(output: Storage, failure: UnitFailure) -> None:
    """Note that a unit failed, so that runs leave it alone until they are asked to try again.

    Raises:
        AlignError: the output cannot be written to any more.
    """
    name = f"{_FAILURES_FOLDER}/{failure.index:07d}.json"
    try:
        output.write_json(name, asdict(failure))
    except OSError as error:
        raise _not_written(output, name, error) from error


def failed_units(output: Storage) -> dict[int, UnitFailure]:
    """The units that failed in earlier runs, by their index."""
    folder = output.child(_FAILURES_FOLDER)
    failures = (UnitFailure(**folder.read_json(name)) for name in folder.names() if _is_json(name))
    return {failure.index: failure for failure in failures}


def forget_failures(output: Storage) -> None:
    """Have failed units tried again."""
    output.delete(_FAILURES_FOLDER)


def unit_name(index: int, file: str, first: int, rows: int) -> str:
    """What messages call a unit: its number and the rows of its file, counted from 1."""
    return f"unit {index} (rows {first + 1:,} to {first + rows:,} of {posixpath.basename(file)})"


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def finished_units(output: Storage) -> Iterator[UnitRecord]:
    """The records that earlier runs left in `output`, in order; a unit whose shard was taken away
    since is not finished.
    """
    there = frozenset(output.names())
    folder = output.child(_RECORDS_FOLDER)
    for name in folder.names():
        if _is_json(name):
            record = _record(json.loads(folder.read_bytes(name)))
            if record.shard.file in there:
                yield record


def _record_file(index: int) -> str:
    return f"{_RECORDS_FOLDER}/{index:07d}.json"


def _record(fields: dict[str, Any]) -> UnitRecord:
    rejects = fields["rejects"]
    info = ShardInfo(**rejects["info"]) if rejects["info"] else None
    return UnitRecord(
        index=fields["index"],
        shard=ShardInfo(**fields["shard"]),
        rejects=WrittenRejects(info, rejects["reasons"]),
        timing=Timing(**fields["timing"]),
    )
