"""`dedup` leaves out pairs whose picture another pair has, and loses none of them."""

import json
import logging
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from aligncurate import bucket, dedup, validate
from aligncurate.cli import app
from aligncurate.stages import dedup as stage
from aligncurate.stages.report import report
from alignshared import AlignError, ContractError, Dataset, InputError
from tests.curation.datasets import files_in, write_levelled_dataset, write_scored_dataset
from tests.curation.inputs import ids_of, rows_of, score_good_pairs
from tests.curation.planted import DIFFERENT, planted_rows, score_planted
from tests.curation.stages.test_report import page_of


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return score_planted(tmp_path_factory.mktemp("planted"), planted_rows())


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page alone: the PNG files, which take seconds, are the business of other tests."""
    monkeypatch.setattr("aligncurate.stages.report._draw", lambda *_: {})


class Meter:
    """Adds up what progress tells."""

    total = 0

    def __call__(self, done: int, rejects: int = 0) -> None:
        self.total += done


def duplicates_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The rows of `duplicates/` by id."""
    found = dataset.manifest.duplicates
    assert found is not None
    tables = [pq.read_table(f"{dataset.location}/{shard.file}") for shard in found.shards]
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def scores_of(dataset: Dataset) -> dict[str, float]:
    return {row["id"]: row["score"] for row in rows_of(dataset)}


def test_planted_duplicates_go_and_nothing_else(planted: Dataset, tmp_path: Path) -> None:
    dataset = dedup(planted.location, tmp_path / "out")
    gone = duplicates_of(dataset)
    pairs = [{id_, row["kept_id"]} for id_, row in gone.items()]
    assert len(gone) == 5
    assert {"fire engine", "engine-jpeg"} in pairs
    assert {"pizza", "pizza-large"} in pairs
    assert {"blue heart", "heart-again"} in pairs
    assert len(ids_of(dataset)) == len(DIFFERENT)
    assert set(ids_of(dataset)) | set(gone) == set(ids_of(planted))
    manifest = dataset.manifest
    assert (manifest.stage, manifest.left_out, manifest.rejects) == ("dedup", 5, {})
    assert planted.manifest.rows == manifest.rows + manifest.left_out
    assert [(p.location, p.sha256) for p in manifest.parents] == [
        (planted.location, planted.digest)
    ]
    assert manifest.duplicates is not None
    assert (manifest.duplicates.exact, manifest.duplicates.near) == (3, 2)
    assert (manifest.duplicates.clusters, manifest.duplicates.largest) == (4, 3)
    assert validate(dataset.location).problems == []


def test_the_best_scored_stays_and_of_equal_ones_the_least_id(
    planted: Dataset, tmp_path: Path
) -> None:
    dataset = dedup(planted.location, tmp_path / "out")
    gone, scores = duplicates_of(dataset), scores_of(planted)
    for id_, row in gone.items():
        assert scores[row["kept_id"]] >= scores[id_]
    assert gone["heart-again"]["kept_id"] == "blue heart"
    assert {id_ for id_, row in gone.items() if row["kept_id"] == "frog"} == {"frog-a", "frog-b"}
    assert scores["frog"] == scores["frog-a"] == scores["frog-b"]


def test_the_first_stays_if_asked(tmp_path: Path) -> None:
    backwards = score_planted(tmp_path, planted_rows()[::-1])
    dataset = dedup(backwards.location, tmp_path / "first", keep="first")
    assert duplicates_of(dataset)["blue heart"]["kept_id"] == "heart-again"
    assert duplicates_of(dataset)["frog"]["kept_id"] == "frog-a"
    best = dedup(backwards.location, tmp_path / "best")
    assert duplicates_of(best)["heart-again"]["kept_id"] == "blue heart"


def test_kinds_and_cosines_are_those_of_the_pictures(planted: Dataset, tmp_path: Path) -> None:
    dataset = dedup(planted.location, tmp_path / "out", threshold=0.9)
    rows = {row["id"]: row for row in rows_of(planted)}
    for id_, row in duplicates_of(dataset).items():
        one, other = rows[id_], rows[row["kept_id"]]
        same = one["image"]["bytes"] == other["image"]["bytes"]
        assert row["kind"] == ("exact" if same else "near")
        x, y = (np.array(r["image_embedding"], np.float32) for r in (one, other))
        cosine = float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        assert row["cosine"] == (1 if same else pytest.approx(cosine, abs=1e-5))
        assert row["cosine"] >= 0.9


def test_rows_stay_as_they_are_and_in_order(planted: Dataset, tmp_path: Path) -> None:
    dataset = dedup(planted.location, tmp_path / "out")
    kept = ids_of(dataset)
    assert rows_of(dataset) == [row for row in rows_of(planted) if row["id"] in kept]
    assert dataset.schema.equals(planted.schema, check_metadata=True)


def test_a_lower_threshold_leaves_out_more(planted: Dataset, tmp_path: Path) -> None:
    counts = [
        dedup(planted.location, tmp_path / str(t), threshold=t).manifest.left_out
        for t in (1.0, 0.99, 0.3, 0.01)
    ]
    assert counts[0] <= counts[1] < counts[2] < counts[3]


def test_exact_ones_need_no_embeddings_and_no_scores(tmp_path: Path) -> None:
    source = score_planted(tmp_path, planted_rows(), embeddings=False)
    dataset = dedup(source.location, tmp_path / "out", exact_only=True)
    assert set(duplicates_of(dataset)) == {"heart-again", "frog-a", "frog-b"}
    assert dataset.manifest.duplicates is not None
    assert dataset.manifest.duplicates.search is None
    with pytest.raises(ContractError, match=r"no image embeddings.*--embeddings.*--exact-only"):
        dedup(source.location, tmp_path / "near")
    assert not (tmp_path / "near").exists()


def test_without_scores_the_first_must_be_asked_for(planted: Dataset, tmp_path: Path) -> None:
    for file in ("a", "b"):
        unscored = write_scored_dataset(tmp_path / file, [0.1], shards=1)
        path = tmp_path / file / "shard-00000.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["score"]), path)
        assert unscored.manifest.rows == 1
    with pytest.raises(InputError, match="no scores to choose by; give --keep first"):
        dedup(tmp_path / "a", exact_only=True)
    assert dedup(tmp_path / "b", tmp_path / "out", exact_only=True, keep="first").manifest.rows == 1


def test_workers_and_layout_change_nothing(planted: Dataset, tmp_path: Path) -> None:
    one = dedup(planted.location, tmp_path / "one", workers=1)
    four = dedup(planted.location, tmp_path / "four", workers=4)
    assert rows_of(one) == rows_of(four)
    assert duplicates_of(one) == duplicates_of(four)
    assert [s.sha256 for s in one.manifest.shards] == [s.sha256 for s in four.manifest.shards]


def test_many_rows_are_searched_in_cells(
    planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    exact = dedup(planted.location, tmp_path / "exact")
    monkeypatch.setattr("aligncurate.duplicates.neighbours.EXACT_MAX_ROWS", 4)
    caplog.set_level(logging.INFO, "aligncurate")
    dataset = dedup(planted.location, tmp_path / "cells", recall=1)
    assert duplicates_of(dataset) == duplicates_of(exact)
    assert dataset.manifest.duplicates is not None
    search = dataset.manifest.duplicates.search
    assert search is not None
    assert (search["method"], search["recall"]) == ("ivf", 1.0)
    assert "100.0 % of the near pairs" in caplog.text


def test_levels_stay_and_are_counted_again(planted: Dataset, tmp_path: Path) -> None:
    levelled = bucket(planted.location, tmp_path / "bucket", levels=3)
    dataset = dedup(levelled.location)
    assert dataset.location == str(tmp_path / "dedup")
    assert dataset.manifest.edges == levelled.manifest.edges
    counts = np.bincount([row["level"] for row in rows_of(dataset)], minlength=4)[1:]
    statistics = dataset.manifest.level_statistics
    assert statistics is not None
    assert [s.count for s in statistics] == counts.tolist()
    assert sum(counts) == len(DIFFERENT)
    assert (
        json.loads((tmp_path / "dedup/levels.json").read_text())["statistics"][0]["count"]
        == (counts[0])
    )
    assert validate(dataset.location).problems == []


def test_an_interrupted_run_goes_on_with_what_it_found(
    planted: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = dedup(planted.location, tmp_path / "quiet")

    def fail(*_: Any, **__: Any) -> None:
        raise AlignError("the disk is full.")

    with monkeypatch.context() as broken:
        broken.setattr(stage, "copy_chosen", fail)
        with pytest.raises(AlignError, match="disk is full"):
            dedup(planted.location, tmp_path / "again")
    assert not (tmp_path / "again" / "manifest.json").exists()
    monkeypatch.setattr(stage, "read_fingerprints", fail)  # what was found is not looked for again
    meter = Meter()
    again = dedup(planted.location, tmp_path / "again", on_progress=meter)
    assert duplicates_of(again) == duplicates_of(quiet)
    assert meter.total == 3 * planted.manifest.rows
    names = set(files_in(tmp_path / "quiet"))
    assert set(files_in(tmp_path / "again")) == names


def test_progress_counts_rows_read_compared_and_written(planted: Dataset, tmp_path: Path) -> None:
    for exact_only, passes in ((False, 3), (True, 2)):
        meter = Meter()
        out = tmp_path / str(passes)
        dedup(planted.location, out, exact_only=exact_only, on_progress=meter)
        assert meter.total == passes * planted.manifest.rows


def test_a_finished_output_is_left_and_another_configuration_refused(
    planted: Dataset, tmp_path: Path
) -> None:
    first = dedup(planted.location, tmp_path / "out")
    assert dedup(planted.location, tmp_path / "out").digest == first.digest
    with pytest.raises(InputError, match=r"near\.threshold is 0\.99 there and 0\.9 here"):
        dedup(planted.location, tmp_path / "out", threshold=0.9)
    replaced = dedup(planted.location, tmp_path / "out", threshold=0.5, overwrite=True)
    assert replaced.manifest.left_out >= first.manifest.left_out
    assert validate(replaced.location).problems == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 0}, "--threshold must be above 0 and at most 1 .got 0"),
        ({"threshold": 1.1}, "--threshold must be above 0 and at most 1 .got 1.1"),
        ({"threshold": float("nan")}, "--threshold must be above 0 and at most 1 .got nan"),
        ({"recall": 0}, "--recall must be above 0 and at most 1 .got 0"),
        ({"keep": "last"}, "--keep must be best or first"),
        ({"chains": "cut"}, "--chains must be split or whole"),
        ({"workers": 0}, "--workers must be at least 1 .got 0"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        dedup(tmp_path, **options)


def test_input_and_output_are_not_one_folder(planted: Dataset) -> None:
    with pytest.raises(InputError, match="is the input or holds it"):
        dedup(planted.location, planted.location, overwrite=True)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "empty", [], shards=1)
    with pytest.raises(InputError, match="empty, so there are no duplicates"):
        dedup(tmp_path / "empty")


def test_pictures_that_are_not_there_are_no_duplicates(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "score", [0.1, 0.2, 0.3], images=False)
    assert dedup(tmp_path / "score", exact_only=True).manifest.left_out == 0


def test_pairs_without_a_score_are_preferred_last(tmp_path: Path) -> None:
    source = write_levelled_dataset(tmp_path / "bucket", [0.1, 0.2, 0.3, 0.4], 2, shards=1)
    path = tmp_path / "bucket" / "shard-00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row, score in zip(rows, (float("nan"), 0.2, None, 0.1), strict=True):
        row["image"]["bytes"], row["score"] = b"one picture", score
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    dataset = dedup(source.location, exact_only=True)
    assert ids_of(dataset) == ["pair-0001"]
    assert {row["kept_id"] for row in duplicates_of(dataset).values()} == {"pair-0001"}


def test_the_command_tells_the_sum(planted: Dataset, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["dedup", "--input", planted.location, "--output", out])
    assert done.exit_code == 0, done.output
    assert "15 pairs in = 10 kept + 5 duplicates + 0 rejects" in done.stdout
    assert "3 exact, 2 near" in done.stdout
    wrong = CliRunner().invoke(app, ["dedup", "--input", planted.location, "--threshold", "7"])
    assert wrong.exit_code == 2
    assert "error: --threshold must be above 0 and at most 1 (got 7.0)" in wrong.stderr


def test_the_defaults_of_command_and_function_are_the_same() -> None:
    command = get_command(app).commands["dedup"]  # pyright: ignore[reportAttributeAccessIssue]
    told = {option.name: option.default for option in command.params}
    defaults = {p.name: p.default for p in signature(stage.dedup).parameters.values()}
    assert defaults["threshold"] == defaults["recall"] == 0.99
    del told["storage_options"], defaults["on_progress"]
    assert told == defaults


def test_validate_finds_what_is_wrong_with_duplicates(planted: Dataset, tmp_path: Path) -> None:
    dataset = dedup(planted.location, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    manifest["duplicates"]["near"] += 1
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    told = " ".join(p.text for p in validate(dataset.location).problems)
    assert "says 3 near duplicates, but duplicates/ holds 2" in told
    assert "5 pairs were left out, but 6 duplicates" in told
    assert dataset.manifest.duplicates is not None
    (tmp_path / "out" / dataset.manifest.duplicates.shards[0].file).unlink()
    told = " ".join(p.text for p in validate(dataset.location).problems)
    assert "duplicates/shard-0000" in told


@pytest.mark.usefixtures("no_figures")
def test_the_report_shows_clusters_with_pictures(planted: Dataset, tmp_path: Path) -> None:
    dataset = dedup(planted.location, tmp_path / "dedup")
    levelled = bucket(dataset.location, tmp_path / "bucket", levels=2)
    for location in (dataset.location, levelled.location):  # an ancestor's are shown as well
        report(location, tmp_path / "report", examples=1)
        page = page_of(tmp_path / "report")
        assert "5 pairs were left out because another pair has the same image" in page.text
        assert "cosine of at least 0.99" in page.text
        assert "3 pairs stays" in page.text
        assert "frog-a" in page.text
        alts = [image["alt"] or "" for image in page.all("img")]
        assert any("frog-b" in alt for alt in alts)
        assert any("engine" in alt for alt in alts)


@pytest.mark.usefixtures("no_figures")
def test_a_report_without_the_input_says_that_pictures_are_gone(tmp_path: Path) -> None:
    rows = planted_rows()
    rows[10] = ("<script>alert(1)</script>", rows[10][1], "<b>bold</b> words")
    source = score_planted(tmp_path, rows)
    dataset = dedup(source.location, tmp_path / "dedup")
    report(dataset.location, tmp_path / "report")
    page = page_of(tmp_path / "report")
    assert page.all("script") == []
    assert "<script>alert(1)</script>" in page.text
    assert "<b>bold</b> words" in page.text
    (tmp_path / "score").rename(tmp_path / "moved")
    report(dataset.location, tmp_path / "report")
    text = page_of(tmp_path / "report").text
    assert "image not readable from here" in text


@pytest.mark.usefixtures("no_figures")
def test_a_report_of_another_dataset_has_no_clusters(planted: Dataset, tmp_path: Path) -> None:
    report(planted.location, tmp_path / "report")
    assert "Duplicates" not in page_of(tmp_path / "report").text


def test_a_tiny_clip_of_another_width_works(tmp_path: Path, tiny_clip: str) -> None:
    source = score_good_pairs(tmp_path, tiny_clip, 6, embeddings=True)
    dataset = dedup(source.location, tmp_path / "dedup", threshold=1.0)
    assert dataset.manifest.rows + dataset.manifest.left_out == 6


def test_the_function_is_found_whatever_was_imported_before() -> None:
    import aligncurate
    import aligncurate.stages.dedup as stage

    assert aligncurate.dedup is stage.dedup
