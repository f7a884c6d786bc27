"""Rejects: intact, counted by reason, and adding up with the rows to the input."""

from collections import Counter
from itertools import chain

from aligncurate.checks.files import UNREADABLE, check_file, open_parquet, unreadable
from aligncurate.checks.manifest import open_dataset
from aligncurate.checks.problems import Kind, Problem
from alignshared import AlignError, Dataset, Reason, ShardInfo
from alignshared.rejects import REJECT_SCHEMA


def check_rejects(dataset: Dataset, shards: list[ShardInfo]) -> list[Problem]:
    """Problems of the reject files `shards` and of their counts."""
    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    whole = True
    for shard in shards:
        faults, reasons = _check_shard(dataset, shard)
        problems += faults
        whole &= reasons is not None
        counts.update(reasons or {})
    # Counts differ if a file was unreadable, which has been reported.
    if whole:
        problems += _check_counts(dataset.manifest.rejects, counts)
    return problems


def _check_shard(dataset: Dataset, shard: ShardInfo) -> tuple[list[Problem], Counter[str] | None]:
    """Problems of one file, and its rejects by reason; None if unreadable."""
    damage = check_file(dataset.storage, shard, Kind.REJECTS)
    problems = [damage] if damage else []
    try:
        with open_parquet(dataset.storage, shard.file) as parquet:
            rows = parquet.metadata.num_rows
            if rows != shard.rows:
                text = f"{shard.file} has {rows:,} rows and the manifest says {shard.rows:,}"
                problems.append(_written_again(text))
            if not parquet.schema_arrow.equals(REJECT_SCHEMA):
                columns = ", ".join(f"{field.name}: {field.type}" for field in REJECT_SCHEMA)
                return [
                    *problems,
                    _written_again(f"{shard.file} has not the columns {columns}"),
                ], None
            batches = parquet.iter_batches(columns=["reason"])
            reasons = Counter(chain.from_iterable(b.column(0).to_pylist() for b in batches))
    except (*UNREADABLE, AlignError) as error:
        return problems or [unreadable(shard.file, error, Kind.REJECTS)], None
    return problems, reasons


def _check_counts(listed: dict[str, int], counts: Counter[str]) -> list[Problem]:
    known = {reason.value for reason in Reason}
    problems = [
        _written_again(f"{reason!r} is no reason for a reject that the contract knows")
        for reason in sorted(map(str, counts.keys() | listed.keys()))
        if reason not in known
    ]
    return problems + [
        _written_again(
            f"the manifest says {listed.get(reason, 0):,} rejects for {reason}, but rejects/ holds "
            f"{counts.get(reason, 0):,}"
        )
        for reason in sorted(counts.keys() | listed.keys(), key=str)
        if listed.get(reason, 0) != counts.get(reason, 0)
    ]


def _written_again(what: str) -> Problem:
    return Problem(Kind.REJECTS, f"{what}; write the dataset again.")


def check_sums(dataset: Dataset) -> list[Problem]:
    """Problems if the shards' rows do not add up, or rows in differ from rows + rejects + left out
    (where the parent is known).
    """
    manifest = dataset.manifest
    problems: list[Problem] = []
    listed = sum(shard.rows for shard in manifest.shards)
    if listed != manifest.rows:
        text = f"the manifest says {manifest.rows:,} rows, but its shards add up to {listed:,}"
        problems.append(Problem(Kind.ROWS, f"{text}; write the dataset again."))
    rows_in = _rows_in(dataset)
    here = manifest.rows + manifest.reject_count + manifest.left_out
    if rows_in is not None and rows_in != here:
        left_out = f" and {manifest.left_out:,} were left out" if manifest.left_out else ""
        text = (
            f"{rows_in:,} rows came in from {manifest.parents[0].location}, but "
            f"{manifest.rows:,} rows and {manifest.reject_count:,} rejects are here{left_out}"
        )
        problems.append(Problem(Kind.ROWS, f"{text}; write the dataset again."))
    return problems


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
