"""`sample` draws exactly so many pairs, evenly by level, the same ones however it is run."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from aligncurate import bucket, filter, inspect, sample, validate
from aligncurate.cli import app
from aligncurate.core.sampling import (
    MAX_SEED,
    Draw,
    KeyCounts,
    balanced_quotas,
    sampling_keys,
)
from aligncurate.reporting.inspection import lineage_rows
from aligncurate.settings import Conditions
from alignshared import Dataset, InputError
from tests.curation.datasets import (
    cosines,
    files_in,
    replace_rows,
    write_levelled_dataset,
    write_scored_dataset,
)
from tests.curation.inputs import ids_of, rows_of


def levelled(folder: Path, count: int = 200, levels: int = 4, **options: Any) -> Dataset:
    return write_levelled_dataset(folder, cosines(count), levels, images=False, **options)


def counts(dataset: Dataset) -> list[int]:
    assert dataset.manifest.level_statistics is not None
    return [statistics.count for statistics in dataset.manifest.level_statistics]


def least_keys(source: Dataset, quotas: Sequence[int], seed: int) -> set[str]:
    """The ids that are to be drawn: of each level those with the least keys."""
    drawn: set[str] = set()
    for level, quota in enumerate(quotas, start=1):
        ids = [row["id"] for row in rows_of(source) if row.get("level", 1) == level]
        keys = dict(zip(ids, sampling_keys(pa.array(ids, pa.string()), seed), strict=True))
        drawn |= set(sorted(ids, key=lambda id_: keys[id_])[:quota])
    return drawn


# How many, and which


@pytest.mark.parametrize("seed", [0, 1, MAX_SEED])
def test_so_many_of_each_level_in_their_order(tmp_path: Path, seed: int) -> None:
    source = levelled(tmp_path / "bucket")
    dataset = sample(source.location, per_level=7, seed=seed)
    assert counts(dataset) == [7, 7, 7, 7]
    wanted = least_keys(source, [7] * 4, seed)
    assert ids_of(dataset) == [id_ for id_ in ids_of(source) if id_ in wanted]
    assert dataset.manifest.left_out == 200 - 28


@pytest.mark.parametrize(("rows", "quotas"), [(40, [10] * 4), (42, [10, 10, 11, 11]), (1, None)])
def test_so_many_in_all(tmp_path: Path, rows: int, quotas: list[int] | None) -> None:
    source = levelled(tmp_path / "bucket")
    dataset = sample(source.location, rows=rows)
    assert counts(dataset) == (quotas or [0, 0, 0, 1])
    assert set(ids_of(dataset)) == least_keys(source, counts(dataset), 0)


def test_without_levels_from_all_alike(tmp_path: Path) -> None:
    source = write_scored_dataset(tmp_path / "score", cosines(90), images=False)
    dataset = sample(source.location, rows=11)
    assert set(ids_of(dataset)) == least_keys(source, [11], 0)
    assert dataset.manifest.edges is None


def test_another_seed_draws_other_pairs(tmp_path: Path) -> None:
    source = write_scored_dataset(tmp_path / "score", cosines(400), images=False)
    draws = [
        set(ids_of(sample(source.location, tmp_path / str(seed), rows=200, seed=seed)))
        for seed in range(4)
    ]
    overlaps = [len(a & b) for i, a in enumerate(draws) for b in draws[:i]]
    # 100 are expected of independent draws, with a standard deviation of 5.
    assert all(70 < overlap < 130 for overlap in overlaps)


def test_a_smaller_sample_lies_within_a_larger_one(tmp_path: Path) -> None:
    source = levelled(tmp_path / "bucket")
    small = sample(source.location, tmp_path / "small", per_level=5)
    large = sample(source.location, tmp_path / "large", per_level=9)
    assert set(ids_of(small)) < set(ids_of(large))


def test_shards_and_workers_change_nothing(tmp_path: Path) -> None:
    scores = cosines(300)
    one = write_levelled_dataset(tmp_path / "one" / "bucket", scores, images=False, shards=1)
    many = write_levelled_dataset(tmp_path / "many" / "bucket", scores, images=False, shards=13)
    first = sample(one.location, rows=50, workers=1)
    second = sample(many.location, rows=50, workers=4)
    assert rows_of(first) == rows_of(second)
    third = sample(many.location, tmp_path / "third", rows=50, workers=1)
    files, again = files_in(Path(second.location)), files_in(Path(third.location))
    assert files.keys() == again.keys()
    differing = {name for name, content in files.items() if content != again[name]}
    assert differing <= {"manifest.json"}


def test_short_levels_give_all_they_have_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = levelled(tmp_path / "bucket")
    few = filter(Conditions(where="level > 2 OR id < 'pair-0020'"), source.location)
    sizes = counts(few)
    assert max(sizes[:2]) < 15
    with caplog.at_level(logging.WARNING, "aligncurate"):
        dataset = sample(few.location, tmp_path / "each", per_level=20)
    assert counts(dataset) == [*sizes[:2], 20, 20]
    assert f"level 1 ({sizes[0]}), level 2 ({sizes[1]})" in caplog.text
    assert "fewer than 20" in caplog.text
    in_all = sample(few.location, tmp_path / "all", rows=60)
    rest = 60 - sum(sizes[:2])
    assert counts(in_all) == [*sizes[:2], rest // 2, rest - rest // 2]


def test_all_are_taken_where_more_are_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = levelled(tmp_path / "bucket", 30)
    with caplog.at_level(logging.WARNING, "aligncurate"):
        dataset = sample(source.location, rows=31)
    assert ids_of(dataset) == ids_of(source)
    assert "30 pairs, fewer than --rows 31; all of them are taken" in caplog.text


def test_equal_ids_are_counted_one_by_one(tmp_path: Path) -> None:
    source = write_scored_dataset(
        tmp_path / "score", cosines(50), images=False, ids=["same"] * 50, shards=7
    )
    dataset = sample(source.location, rows=23)
    assert [row["caption"] for row in rows_of(dataset)] == [
        f"caption number {i}" for i in range(23)
    ]


# What is written


def test_a_sample_is_a_levelled_dataset_with_lineage(tmp_path: Path) -> None:
    scored = write_scored_dataset(tmp_path / "score", cosines(64))
    source = bucket(scored.location, levels=4)
    dataset = sample(source.location, per_level=3)
    assert dataset.manifest.stage == "sample"
    assert dataset.manifest.edges == source.manifest.edges
    assert validate(dataset.location).problems == []
    found = inspect(dataset.location)
    assert [where.strip() for where, _ in lineage_rows(found)] == [source.location, scored.location]
    told = json.loads((tmp_path / "sample" / "levels.json").read_text())
    assert [level["count"] for level in told["statistics"]] == [3, 3, 3, 3]
    by_id = {row["id"]: row for row in rows_of(source)}
    assert all(row == by_id[row["id"]] for row in rows_of(dataset))


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    source = levelled(tmp_path / "bucket", 300, shards=10)
    seen = 0

    def stop_in_the_copy(done: int, rejects: int = 0) -> None:
        nonlocal seen
        seen += done
        if seen > 450:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sample(source.location, out, rows=200, workers=1, on_progress=stop_in_the_copy)
    assert (out / "shard-00000.parquet").exists()
    assert not (out / "manifest.json").exists()
    dataset = sample(source.location, out, rows=200, workers=1)
    quiet = sample(source.location, tmp_path / "quiet", rows=200)
    assert dataset.manifest.shards == quiet.manifest.shards
    assert validate(out).problems == []


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either --rows"),
        ({"rows": 3, "per_level": 3}, "give either --rows"),
        ({"rows": 0}, r"--rows must be at least 1 \(got 0\)"),
        ({"per_level": -1}, r"--per-level must be at least 1 \(got -1\)"),
        ({"rows": 3, "seed": -1}, r"--seed must be from 0 to \d+ \(got -1\)"),
        (
            {"rows": 3, "seed": MAX_SEED + 1},
            rf"--seed must be from 0 to {MAX_SEED} \(got {MAX_SEED + 1}\)",
        ),
        ({"rows": 3, "workers": 0}, r"--workers must be at least 1 \(got 0\)"),
        ({"per_level": 3}, "has none; run aligncurate bucket on it first, or give --rows"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = write_scored_dataset(tmp_path / "score", cosines(10), images=False)
    with pytest.raises(InputError, match=message):
        sample(source.location, **options)
    assert not (tmp_path / "sample").exists()


def test_a_level_that_cannot_be_is_named(tmp_path: Path) -> None:
    source = levelled(tmp_path / "bucket", 30)
    rows = rows_of(source)
    rows[7]["level"] = 5
    replace_rows(source, pa.Table.from_pylist(rows, source.schema))
    with pytest.raises(InputError, match=r"levels outside 1\.\.4"):
        sample(source.location, rows=3)
    assert not (tmp_path / "sample").exists()


# The arithmetic


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 500))
def test_quotas_are_as_even_as_the_groups_allow(sizes: list[int], rows: int) -> None:
    quotas = balanced_quotas(sizes, rows)
    assert sum(quotas) == min(rows, sum(sizes))
    assert all(0 <= quota <= size for quota, size in zip(quotas, sizes, strict=True))
    not_exhausted = [q for q, size in zip(quotas, sizes, strict=True) if q < size]
    if not_exhausted:
        assert max(quotas) - min(not_exhausted) <= 1


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 3)), max_size=60),
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    st.integers(1, 5),
)
def test_the_least_keys_are_drawn_from_any_parts(
    rows: list[tuple[int, int, int]], wanted: list[int], parts: int
) -> None:
    # Few upper and lower halves, so that bins are shared and keys are equal.
    groups = np.array([group for group, _, _ in rows], dtype=np.intp)
    keys = np.array([high << 48 | low for _, high, low in rows], dtype=np.uint64)
    counts = KeyCounts(3)
    counts.add(keys, groups)
    quotas = [min(want, size) for want, size in zip(wanted, counts.sizes, strict=True)]
    draw = Draw(counts, quotas)
    pieces = list(zip(np.array_split(keys, parts), np.array_split(groups, parts), strict=True))
    draw.resolve([draw.of_last_bin(*piece) for piece in pieces])
    drawn = np.concatenate([draw.drawn(part, *piece) for part, piece in enumerate(pieces)])
    for group, quota in enumerate(quotas):
        # A stable sort puts equal keys in the order of the rows.
        of_group = np.flatnonzero(groups == group)
        expected = of_group[np.argsort(keys[of_group], kind="stable")][:quota]
        assert np.flatnonzero(drawn & (groups == group)).tolist() == sorted(expected.tolist())


# On the command line


def test_the_command_prints_what_was_drawn(workdir: Path) -> None:
    levelled(workdir / "data" / "mine" / "bucket", 40)
    told = CliRunner().invoke(app, ["sample", "--per-level", "3", "--seed", "5"])
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert lines[0] == "data/mine/sample: 40 pairs in = 12 drawn + 28 not drawn + 0 rejects"
    assert lines[1].split() == ["level", "drawn", "of"]
    source = counts(Dataset(workdir / "data" / "mine" / "bucket"))
    assert [line.split() for line in lines[2:]] == [
        [str(level), "3", str(source[level - 1])] for level in (4, 3, 2, 1)
    ]
    assert CliRunner().invoke(app, ["sample"]).exit_code == 2
