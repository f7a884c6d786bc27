"""Rejects and duplicates: intact, counted by kind, and adding up with the rows to the input."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from aligncurate.checks.files import UNREADABLE, check_file, open_parquet, unreadable
from aligncurate.checks.manifest import open_dataset
from aligncurate.checks.problems import Kind, Problem, written_wrongly
from alignshared import AlignError, Dataset, Reason, ShardInfo
from alignshared.rejects import DUPLICATE_SCHEMA, REJECT_SCHEMA, Likeness


def check_rejects(dataset: Dataset, shards: list[ShardInfo]) -> list[Problem]:
    """Problems of the reject files `shards` and of their counts."""
    problems, counts = _counted(dataset, shards, REJECT_SCHEMA, "reason", Kind.REJECTS)
    if counts is None:
        return problems
    known = {reason.value for reason in Reason}
    listed = dataset.manifest.rejects
    reasons = sorted(counts.keys() | listed.keys(), key=str)
    faults = [
        f"{reason!r} is no reason for a reject that the contract knows"
        for reason in map(str, reasons)
        if reason not in known
    ]
    faults += [
        f"the manifest says {listed.get(reason, 0):,} rejects for {reason}, but rejects/ holds "
        f"{counts.get(reason, 0):,}"
        for reason in reasons
        if listed.get(reason, 0) != counts.get(reason, 0)
    ]
    return problems + [written_wrongly(Kind.REJECTS, fault) for fault in faults]


def check_duplicates(dataset: Dataset) -> list[Problem]:
    """Problems of the files in `duplicates/`, left out by a dedup run, and of their counts."""
    listed = dataset.manifest.duplicates
    if listed is None:
        return []
    problems, counts = _counted(dataset, listed.shards, DUPLICATE_SCHEMA, "kind", Kind.DUPLICATES)
    if counts is None:
        return problems
    expected = {Likeness.EXACT.value: listed.exact, Likeness.NEAR.value: listed.near}
    faults: list[str] = []
    for kind in sorted(map(str, counts.keys() | expected.keys())):
        if kind not in expected:
            faults.append(f"{kind!r} is no kind of duplicate that the contract knows")
        elif expected[kind] != counts[kind]:
            faults.append(
                f"the manifest says {expected[kind]:,} {kind} duplicates, but duplicates/ holds "
                f"{counts[kind]:,}"
            )
    left_out = dataset.manifest.left_out
    if listed.count != left_out:
        faults.append(
            f"the manifest says that {left_out:,} pairs were left out, but {listed.count:,} "
            "duplicates"
        )
    return problems + [written_wrongly(Kind.DUPLICATES, fault) for fault in faults]


def _counted(
    dataset: Dataset, shards: list[ShardInfo], schema: pa.Schema, column: str, kind: Kind
) -> tuple[list[Problem], Counter[str] | None]:
    """Problems of the files `shards`, and their values in `column`; None if one is unreadable."""
    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    whole = True
    for shard in shards:
        damage = check_file(dataset.storage, shard, kind)
        faults = [damage] if damage else []
        try:
            with open_parquet(dataset.storage, shard.file) as parquet:
                rows = parquet.metadata.num_rows
                if rows != shard.rows:
                    fault = f"{shard.file} has {rows:,} rows and the manifest says {shard.rows:,}"
                    faults.append(written_wrongly(kind, fault))
                if parquet.schema_arrow.equals(schema):
                    for batch in parquet.iter_batches(columns=[column]):
                        counts.update(batch.column(0).to_pylist())
                else:
                    whole = False
                    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
                    fault = f"{shard.file} has not the columns {columns}"
                    faults.append(written_wrongly(kind, fault))
        except (*UNREADABLE, AlignError) as error:
            whole = False
            faults = faults or [unreadable(shard.file, error, kind)]
        problems += faults
    return problems, counts if whole else None


def check_sums(dataset: Dataset) -> Iterator[Problem]:
    """Problems if the rows of the shards do not add up, or, where the parent is known, if the rows
    that came in are not those here, the rejects and those left out.
    """
    manifest = dataset.manifest
    listed = sum(shard.rows for shard in manifest.shards)
    if listed != manifest.rows:
        yield written_wrongly(
            Kind.ROWS,
            f"the manifest says {manifest.rows:,} rows, but its shards add up to {listed:,}",
        )
    rows_in = _rows_in(dataset)
    here = manifest.rows + manifest.reject_count + manifest.left_out
    if rows_in is not None and rows_in != here:
        left_out = f" and {manifest.left_out:,} were left out" if manifest.left_out else ""
        yield written_wrongly(
            Kind.ROWS,
            f"{rows_in:,} rows came in from {manifest.parents[0].location}, but "
            f"{manifest.rows:,} rows and {manifest.reject_count:,} rejects are here{left_out}",
        )


def _rows_in(dataset: Dataset) -> int | None:
    """Rows of the single parent dataset, if still readable and unchanged."""
    if len(dataset.manifest.parents) != 1:
        return None
    (parent,) = dataset.manifest.parents
    try:
        source = open_dataset(parent.location)
        return source.manifest.rows if source.digest == parent.sha256 else None
    except (AlignError, OSError):
        return None
