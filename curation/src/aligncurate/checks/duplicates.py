"""Checks of `duplicates/`, the pairs left out by a dedup run."""

from collections import Counter
from collections.abc import Iterator

from aligncurate.checks.files import UNREADABLE, check_file, open_parquet, unreadable
from aligncurate.checks.problems import Kind, Problem
from alignshared import AlignError, Dataset, DuplicateInfo, ShardInfo
from alignshared.rejects import DUPLICATE_SCHEMA, Likeness


def check_duplicates(dataset: Dataset) -> list[Problem]:
    """Problems of the files in `duplicates/` and their counts in the manifest."""
    listed = dataset.manifest.duplicates
    if listed is None:
        return []
    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    for shard in listed.shards:
        damage = check_file(dataset.storage, shard, Kind.DUPLICATES)
        problems += [damage] if damage else []
        try:
            problems += _check_shard(dataset, shard, counts)
        except (*UNREADABLE, AlignError) as error:
            return problems or [unreadable(shard.file, error, Kind.DUPLICATES)]
    return problems + list(_check_counts(listed, dataset.manifest.left_out, counts))


def _check_shard(dataset: Dataset, shard: ShardInfo, counts: Counter[str]) -> list[Problem]:
    with open_parquet(dataset.storage, shard.file) as parquet:
        if not parquet.schema_arrow.equals(DUPLICATE_SCHEMA):
            columns = ", ".join(f"{field.name}: {field.type}" for field in DUPLICATE_SCHEMA)
            return [_written_again(f"{shard.file} has not the columns {columns}")]
        for batch in parquet.iter_batches(columns=["kind"]):
            counts.update(batch.column(0).to_pylist())
        rows = parquet.metadata.num_rows
        if rows != shard.rows:
            text = f"{shard.file} has {rows:,} rows and the manifest says {shard.rows:,}"
            return [_written_again(text)]
    return []


def _check_counts(listed: DuplicateInfo, left_out: int, counts: Counter[str]) -> Iterator[Problem]:
    expected = {Likeness.EXACT.value: listed.exact, Likeness.NEAR.value: listed.near}
    for kind in sorted(map(str, counts.keys() | expected.keys())):
        if kind not in expected:
            yield _written_again(f"{kind!r} is no kind of duplicate that the contract knows")
        elif expected[kind] != counts[kind]:
            yield _written_again(
                f"the manifest says {expected[kind]:,} {kind} duplicates, but duplicates/ holds "
                f"{counts[kind]:,}"
            )
    if listed.count != left_out:
        yield _written_again(
            f"the manifest says that {left_out:,} pairs were left out, but {listed.count:,} "
            "duplicates"
        )


def _written_again(what: str) -> Problem:
    return Problem(Kind.DUPLICATES, f"{what}; write the dataset again.")
