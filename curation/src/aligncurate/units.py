"""Units that are finished: each leaves its shard, its rejects and a record, so that a run can go
on.

The record is written last. A unit without one is done again from the start; its half-written files
were never given their names.
"""

import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from aligncurate.output import (
    RUN_FOLDER,
    WrittenRejects,
    release_output,
    shard_name,
    write_rejects,
)
from alignshared import AlignError, Reject, ShardInfo, Storage
from alignshared.shards import writing_shard

_RECORDS_FOLDER = f"{RUN_FOLDER}/units"


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


def write_unit(
    output: Storage, index: int, schema: pa.Schema, batches: Iterable[FinishedBatch]
) -> UnitRecord:
    """Write the shard, the rejects and the record of unit `index`, taking `batches` one at a
    time.

    Raises:
        AlignError: the disk is full, or the output cannot be written to any more.
    """
    name = shard_name(index)
    rejects: list[Reject] = []
    timing = Timing()
    try:
        with writing_shard(output, name, schema) as (writer, result):
            for batch in batches:
                writer.write(batch.table)
                rejects += batch.rejects
                timing += batch.timing
        record = UnitRecord(index, result.info, write_rejects(output, name, rejects), timing)
        output.write_json(_record_file(index), asdict(record))
    except OSError as error:  # Sources name their own files; what is left is the output.
        raise AlignError(
            f"{name} cannot be written in {output.location}: {error}; make room or access, and run "
            "the same command to go on."
        ) from error
    return record


@contextmanager
def released_if_empty(output: Storage) -> Generator[None, None, None]:
    """Where what is done inside fails before a unit is finished, `output` is as good as new."""
    try:
        yield
    except BaseException:
        if not any(finished_units(output)):
            release_output(output)
        raise


def finished_units(output: Storage) -> Iterator[UnitRecord]:
    """The records that earlier runs left in `output`, in order; a unit whose shard was taken away
    since is not finished.
    """
    there = frozenset(output.names())
    folder = output.child(_RECORDS_FOLDER)
    for name in folder.names():
        if name.endswith(".json"):
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
