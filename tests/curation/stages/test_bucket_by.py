"""`bucket --by` sorts by another column of numbers, and what comes after knows of it."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from aligncurate import bucket, export, filter, inspect, report, sample, validate
from aligncurate.cli import app
from aligncurate.reporting.inspection import facts
from aligncurate.reporting.summary import known_summary
from aligncurate.settings import Conditions
from alignshared import ContractError, Dataset, InputError
from alignshared.rejects import REJECT_SCHEMA
from tests.curation.datasets import cosines, replace_rows, write_scored_dataset

RATINGS = np.random.default_rng(5).normal(5, 2, 101)


def rated(folder: Path, ratings: Any = RATINGS, kind: pa.DataType | None = None) -> Dataset:
    """A scored dataset without pictures, with the column `rating`."""
    source = write_scored_dataset(folder, cosines(len(ratings)), images=False)
    table = pa.concat_tables(pa.Table.from_batches([batch]) for batch in source.batches())
    return replace_rows(source, table.append_column("rating", pa.array(ratings, kind)))


def column(dataset: Dataset, name: str) -> list[Any]:
    return [value for batch in dataset.batches([name]) for value in batch.column(name).to_pylist()]


@pytest.mark.parametrize("kind", ["double", "float", "halffloat", "int64", "uint8"])
def test_levels_are_those_of_numpys_order_statistics(tmp_path: Path, kind: str) -> None:
    whole = "int" in kind
    numbers = np.arange(101)[::-1] * 2 if whole else RATINGS.astype(np.float16)
    source = rated(tmp_path / "score", numbers.tolist(), pa.type_for_alias(kind))
    dataset = bucket(source.location, levels=8, by="rating")
    ordered = np.sort(numbers.astype(np.float32))
    edges = ordered[[k * 101 // 8 for k in range(1, 8)]]
    assert dataset.manifest.edges == edges.tolist()
    expected = 1 + (numbers.astype(np.float32)[:, None] >= edges).sum(axis=1)
    assert column(dataset, "level") == expected.tolist()
    told = json.loads((tmp_path / "bucket" / "levels.json").read_text())
    assert (dataset.manifest.by, told["by"]) == ("rating", "rating")
    assert validate(dataset.location).ok


def test_by_the_score_is_as_without(tmp_path: Path) -> None:
    source = rated(tmp_path / "score")
    plain = bucket(source.location, tmp_path / "plain", levels=4)
    named = bucket(source.location, tmp_path / "named", levels=4, by="score")
    assert plain.manifest.config == named.manifest.config
    for name in ("levels.json", *(shard.file for shard in plain.manifest.shards)):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "named" / name).read_bytes()
    assert "by" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert "by" not in json.loads((tmp_path / "plain" / "levels.json").read_text())


def test_numbers_that_are_none_are_rejects(tmp_path: Path) -> None:
    ratings: list[float | None] = [*RATINGS.tolist(), None, float("nan"), float("inf"), 1e300]
    dataset = bucket(rated(tmp_path / "score", ratings).location, levels=4, by="rating")
    assert (dataset.manifest.rows, dataset.manifest.reject_count) == (101, 4)
    rejects = [row for table in _rejects(dataset) for row in table.to_pylist()]
    assert [row["detail"] for row in rejects] == [
        "the rating is null", "the rating is nan", "the rating is inf", "the rating is 1e+300",
    ]  # fmt: skip
    assert validate(dataset.location).ok


def _rejects(dataset: Dataset) -> list[pa.Table]:
    files = [Path(dataset.location) / shard.file for shard in dataset.manifest.reject_shards]
    return [pq.read_table(file, schema=REJECT_SCHEMA) for file in files]


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("caption", "has one of string; give one of width, height, score, rating"),
        ("caption_truncated", "has one of bool"),
        ("image", "has one of struct"),
        ("ratings", "has none of this name; give one of width, height, score, rating"),
        ("", "has none of this name"),
        ("level", "has the levels themselves there"),
    ],
)
def test_columns_that_are_no_numbers(tmp_path: Path, by: str, said: str) -> None:
    source = rated(tmp_path / "score")
    if by == "level":
        source = bucket(source.location, tmp_path / "levelled", levels=2)
    words = ["bucket", "--input", source.location, "--output", str(tmp_path / "out"), "--by", by]
    answer = CliRunner().invoke(app, words, catch_exceptions=False)
    assert answer.exit_code == 2
    told = " ".join(answer.output.split())
    assert f"--by {by} needs a column".replace("  ", " ") in told
    assert said in told
    assert not (tmp_path / "out").exists()


def test_a_column_of_no_finite_number(tmp_path: Path) -> None:
    source = rated(tmp_path / "score", [None] * 5, pa.float64())
    with pytest.raises(InputError, match=r"none of the 5 values of rating .* name another column"):
        bucket(source.location, by="rating")


def test_the_score_need_not_be_there(tmp_path: Path) -> None:
    source = rated(tmp_path / "score")
    table = pa.concat_tables(pa.Table.from_batches([batch]) for batch in source.batches())
    source = replace_rows(source, table.drop_columns(["score"]))
    with pytest.raises(ContractError, match="has no column score"):
        bucket(source.location)
    dataset = bucket(source.location, levels=4, by="rating")
    assert validate(dataset.location).ok
    assert filter(Conditions(levels="3-4"), dataset.location, tmp_path / "best").manifest.rows == 51


def test_another_column_is_another_configuration(tmp_path: Path) -> None:
    source = rated(tmp_path / "score")
    first = bucket(source.location, levels=4, by="rating")
    assert bucket(source.location, levels=4, by="rating").digest == first.digest
    with pytest.raises(InputError, match=r"by"):
        bucket(source.location, levels=4)


def test_edges_bring_their_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = rated(tmp_path / "score")
    first = bucket(source.location, levels=4, by="rating")
    for edges in (first.location, tmp_path / "bucket" / "levels.json"):
        again = bucket(source.location, tmp_path / "again", edges=edges, overwrite=True)
        assert again.manifest.by == "rating"
        assert column(again, "level") == column(first, "level")
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "aligncurate"):
        other = bucket(source.location, tmp_path / "other", edges=first.location, by="score")
    assert "part rating, and here score of" in caplog.text
    assert other.manifest.by is None
    assert set(column(other, "level")) == {1}  # all scores lie below the ratings' edges


def test_later_stages_keep_the_column(tmp_path: Path) -> None:
    dataset = bucket(rated(tmp_path / "score").location, levels=4, by="rating")
    best = filter(Conditions(levels="3-4"), dataset.location, tmp_path / "best")
    few = sample(best.location, tmp_path / "few", per_level=5, seed=1)
    for made in (best, few):
        assert made.manifest.by == "rating"
        statistics = made.manifest.level_statistics
        assert statistics is not None
        ratings = np.array(column(made, "rating"), dtype=np.float32)
        levels = np.array(column(made, "level"))
        assert statistics[3].mean == pytest.approx(ratings[levels == 4].mean())
        assert validate(made.location).ok
    hub = export(few.location, tmp_path / "hub", format="hf")
    card = (Path(hub.location) / "README.md").read_text()
    assert "not above `rating`" in card
    assert ("levels", "4, quantile of rating") in facts(inspect(few.location))


def test_validate_sees_levels_of_another_column(tmp_path: Path) -> None:
    dataset = bucket(rated(tmp_path / "score").location, levels=4, by="rating")
    table = pa.concat_tables(pa.Table.from_batches([batch]) for batch in dataset.batches())
    at = table.schema.get_field_index("rating")
    ratings = table.column("rating").to_pylist()
    ratings[3], ratings[4] = None, -ratings[4]
    replace_rows(dataset, table.set_column(at, "rating", pa.array(ratings)))
    told = [problem.text for problem in validate(dataset.location).problems]
    assert any("1 row with a rating that is null, NaN or infinite: row 3" in text for text in told)
    assert any("another level than the edges give the rating: row 4" in text for text in told)
    words = table.set_column(at, "rating", pa.array(["good"] * 101))
    replace_rows(dataset, words)
    told = [problem.text for problem in validate(dataset.location).problems]
    assert any("column rating, which the levels part, has type string" in text for text in told)


def test_a_report_shows_the_column(tmp_path: Path) -> None:
    first = bucket(rated(tmp_path / "score").location, levels=4, by="rating")
    files = report(first.location, tmp_path / "report")
    page = Path(files.page).read_text()
    assert "the column <code>rating</code>" in page
    assert "under CLIP" not in page
    summary = known_summary(first)
    assert summary is not None
    assert summary.histogram.mean == pytest.approx(RATINGS.astype(np.float32).mean())
    bins = summary.histogram.bins()
    counted, _ = np.histogram(RATINGS.astype(np.float32), bins.ends)
    assert bins.counts.tolist() == counted.tolist()
    assert len(bins.counts) > 20


def test_drift_of_the_column_over_another_range(tmp_path: Path) -> None:
    first = bucket(rated(tmp_path / "a" / "score").location, levels=4, by="rating")
    wider = rated(tmp_path / "b" / "score", 3 * RATINGS)  # beyond 10, in bins of another width
    second = bucket(wider.location, levels=4, by="rating")
    files = report(first.location, tmp_path / "report", against=second.location)
    assert files.drift is not None
    assert any("The mean rating of" in text and "higher" in text for text in files.drift.sentences)
    page = Path(files.page).read_text()
    both = np.concatenate([RATINGS, 3 * RATINGS])
    cuts = np.linspace(both.min(), both.max(), 2001)
    shares = [np.searchsorted(np.sort(x), cuts) / 101 for x in (RATINGS, 3 * RATINGS)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    assert f"{distance:.3f}" in page
    unlike = bucket(wider.location, tmp_path / "by-score", levels=4)
    with pytest.raises(InputError, match=r"part rating and .* has score, which cannot be"):
        report(first.location, tmp_path / "report", against=unlike.location)
