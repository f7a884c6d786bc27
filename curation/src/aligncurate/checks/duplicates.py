"""The duplicates that a dedup run left out: kept whole, and counted by kind."""

from collections import Counter
from collections.abc import Iterator

from aligncurate.checks.files import UNREADABLE, check_file, open_parquet, unreadable
from aligncurate.checks.problems import Kind, Problem
from alignshared import AlignError, Dataset, DuplicateInfo, ShardInfo
from alignshared.duplicates import DUPLICATE_SCHEMA, Likeness


def check_duplicates(dataset: Dataset) -> list[Problem]:
    """Problems of the files in `duplicates/` and of their counts in the manifest."""
    told = dataset.manifest.duplicates
    if told is None:
        return []
    found: Counter[str] = Counter()
    problems: list[Problem] = []
    for shard in told.shards:
        damage = check_file(dataset.storage, shard, Kind.DUPLICATES)
        problems += [damage] if damage else []
        try:
            problems += _check_shard(dataset, shard, found)
        except (*UNREADABLE, AlignError) as error:
            return problems or [unreadable(shard.file, error, Kind.DUPLICATES)]
    return problems + list(_check_counts(told, dataset.manifest.left_out, found))


def _check_shard(dataset: Dataset, shard: ShardInfo, found: Counter[str]) -> list[Problem]:
    with open_parquet(dataset.storage, shard.file) as parquet:
        if not parquet.schema_arrow.equals(DUPLICATE_SCHEMA):
            columns = ", ".join(f"{field.name}: {field.type}" for field in DUPLICATE_SCHEMA)
            return [_written_again(f"{shard.file} has not the columns {columns}")]
        for batch in parquet.iter_batches(columns=["kind"]):
            found.update(batch.column(0).to_pylist())
        rows = parquet.metadata.num_rows
        if rows != shard.rows:
            text = f"{shard.file} has {rows:,} rows and the manifest says {shard.rows:,}"
            return [_written_again(text)]
    return []


def _check_counts(told: DuplicateInfo, left_out: int, found: Counter[str]) -> Iterator[Problem]:
    wanted = {Likeness.EXACT.value: told.exact, Likeness.NEAR.value: told.near}
    for kind in sorted(map(str, found.keys() | wanted.keys())):
        if kind not in wanted:
            yield _written_again(f"{kind!r} is no kind of duplicate that the contract knows")
        elif wanted[kind] != found[kind]:
            yield _written_again(
                f"the manifest says {wanted[kind]:,} {kind} duplicates, but duplicates/ holds "
                f"{found[kind]:,}"
            )
    if told.count != left_out:
        yield _written_again(
            f"the manifest says that {left_out:,} pairs were left out, but {told.count:,} "
            "duplicates"
        )


def _written_again(what: str) -> Problem:
    return Problem(Kind.DUPLICATES, f"{what}; write the dataset again.")
