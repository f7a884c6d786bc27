"""validate: check every file and row of a dataset against the contract."""

import os
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from aligncurate.checks.columns import check_columns
from aligncurate.checks.files import check_strays, distinct_shards
from aligncurate.checks.left_out import check_duplicates, check_rejects, check_sums
from aligncurate.checks.levels import check_levels_file, check_statistics, edges_of
from aligncurate.checks.manifest import open_dataset
from aligncurate.checks.problems import Problem, ProblemList
from aligncurate.checks.rows import RowChecker, check_unique, first_schema
from aligncurate.core.idhash import RepeatFinder
from aligncurate.output.locations import READABLE_STAGES, newest_dataset
from aligncurate.progress import OnProgress, silent
from aligncurate.threads import available_cores, map_ordered
from alignshared import Dataset, LevelEdges, ShardInfo
from alignshared.levels import LevelAccumulator


@dataclass(frozen=True, slots=True)
class Validation:
    """Problems of the dataset at `location`.

    `rows` of the manifest's `rows_listed` were readable and checked. `problems` holds the first
    few of each kind and the number of others; `problem_count` counts all.
    """

    location: str
    stage: str
    rows: int
    rows_listed: int
    rejects: int
    shards: int
    problems: list[Problem]
    problem_count: int

    @property
    def ok(self) -> bool:
        """Whether the dataset satisfies the contract."""
        return self.problem_count == 0


def validate(
    input: str | os.PathLike[str] | None = None, *, on_progress: OnProgress = silent
) -> Validation:
    """Check a dataset against its manifest and the contract, writing only to `$TMPDIR`.

    Every file is read and hashed, and `id`, `score` and `level` of every row are checked. Memory
    is constant; from four million ids on, 8 bytes each go to a temporary folder. All problems
    are reported.

    Args:
        input: a dataset; by default the newest one under `data/`.
        on_progress: called with the number of rows checked, of `manifest.rows`.

    Raises:
        InputError: `input` holds no dataset with a readable manifest.
    """
    location = newest_dataset(*READABLE_STAGES).location if input is None else input
    dataset = open_dataset(location)
    problems = ProblemList()
    shards, listed_twice = distinct_shards(dataset.manifest.shards)
    reject_shards, rejects_listed_twice = distinct_shards(dataset.manifest.reject_shards)
    edges, wrong_edges = edges_of(dataset)
    problems.add([*listed_twice, *rejects_listed_twice, *check_strays(dataset)])
    problems.add([*check_sums(dataset), *wrong_edges])
    if edges:
        problems.add(check_levels_file(dataset, edges))
    rows = _check_rows(dataset, shards, edges, problems, on_progress)
    problems.add(check_rejects(dataset, reject_shards))
    problems.add(check_duplicates(dataset))
    return Validation(
        location=dataset.location,
        stage=dataset.manifest.stage,
        rows=rows,
        rows_listed=dataset.manifest.rows,
        rejects=dataset.manifest.reject_count,
        shards=len(shards),
        problems=problems.listed(),
        problem_count=problems.count,
    )


def _check_rows(
    dataset: Dataset,
    shards: list[ShardInfo],
    edges: LevelEdges | None,
    problems: ProblemList,
    on_progress: OnProgress,
) -> int:
    """Check `shards` one by one and their ids and levels together; return the number of rows
    read.
    """
    schema = first_schema(dataset, shards)
    if schema is not None:
        problems.add(check_columns(schema, dataset.manifest))
    rows, whole = 0, True
    levels = LevelAccumulator(edges.levels if edges else 1)
    with closing(RepeatFinder()) as repeats:
        check = RowChecker(dataset.storage, schema or pa.schema([]), edges, repeats, on_progress)
        for findings in map_ordered(check, shards, workers=available_cores()):
            problems.add(findings.problems)
            rows += findings.rows
            whole &= findings.whole
            if findings.levels and edges:
                levels.merge(findings.levels)
        problems.add(check_unique(dataset, shards, repeats))
    # With rows missing, statistics differ for a reason already reported.
    if edges and whole:
        listed = dataset.manifest.level_statistics or []
        problems.add(check_statistics(listed, levels.statistics()))
    return rows
