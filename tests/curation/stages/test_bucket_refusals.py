"""What `bucket` refuses, with one sentence each, and how it treats the folder it writes into."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligncurate import bucket
from aligncurate.output.folder import finish, shard_name
from alignshared import ContractError, Dataset, InputError, Manifest, Storage
from alignshared.atomic import UNFINISHED
from tests.curation.datasets import cosines, files_in, replace_rows, write_scored_dataset


def scored(
    folder: Path, scores: list[float | None] | list[float] | None = None, shards: int = 3
) -> Dataset:
    """A dataset without pictures, which take most of the time to write."""
    values = cosines(100) if scores is None else scores
    return write_scored_dataset(folder, values, shards=shards, images=False)


# What is refused


@pytest.mark.parametrize("levels", [-1, 0, 1, 128, 1000])
def test_a_number_of_levels_that_cannot_be(tmp_path: Path, levels: int) -> None:
    with pytest.raises(InputError, match=f"--levels {levels} cannot be: .* from 2 to 127"):
        bucket(scored(tmp_path / "score").location, levels=levels)


@pytest.mark.parametrize("scheme", ["quantile", "equal-width"])
def test_more_levels_than_distinct_scores(tmp_path: Path, scheme: Any) -> None:
    source = scored(tmp_path / "score", [0.1, 0.2, 0.3, 0.3, -0.0, 0.0])
    with pytest.raises(InputError, match="only 4 distinct finite scores, too few for 5 levels"):
        bucket(source.location, levels=5, scheme=scheme)
    assert not (tmp_path / "bucket").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 4, "edges": "levels.json"}, "--levels and --edges were both given"),
        ({"scheme": "width"}, "--scheme must be quantile or equal-width .got width"),
        ({"workers": 0}, "--workers must be at least 1 .got 0"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bucket(scored(tmp_path / "score").location, **arguments)


def test_an_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty, so there is nothing to sort"):
        bucket(scored(tmp_path / "score", [], shards=1).location, levels=2)
    no_shards = Manifest(
        stage="score", rows=0, rejects={}, shards=[], reject_shards=[], config={}, parents=[],
        package="aligncurate 0", created="2025-01-02T03:04:05+00:00",
    )  # fmt: skip
    finish(Storage(tmp_path / "none"), no_shards)
    with pytest.raises(InputError, match="is empty, so there is nothing to sort"):
        bucket(tmp_path / "none", levels=2)


def test_a_dataset_that_is_missing_or_unfinished(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="nowhere is not a dataset: there is no such folder"):
        bucket(tmp_path / "nowhere", levels=2)
    scored(tmp_path / "score")
    (tmp_path / "score" / "manifest.json").unlink()
    with pytest.raises(ContractError, match=r"it has no manifest\.json; .* run the command"):
        bucket(tmp_path / "score", levels=2)


def test_a_dataset_without_scores(tmp_path: Path) -> None:
    source = scored(tmp_path / "score")
    table = pa.table({"id": ["a", "b"], "caption": ["x", "y"]})
    with pytest.raises(ContractError, match="has no column score"):
        bucket(replace_rows(source, table).location, levels=2)
    table = pa.table({"id": ["a", "b"], "score": [0.1, 0.2]})
    with pytest.raises(ContractError, match=r"column score .* has type double"):
        bucket(replace_rows(source, table).location, levels=2)


@pytest.mark.parametrize("output", ["score", "score/../score", ".", "link"])
def test_the_output_may_not_be_the_input_or_hold_it(workdir: Path, output: str) -> None:
    source = scored(workdir / "score")
    (workdir / "link").symlink_to(workdir / "score")
    before = files_in(workdir / "score")
    with pytest.raises(InputError, match="is the input or holds it; name another folder"):
        bucket(source.location, output, levels=2, overwrite=True)
    assert files_in(workdir / "score") == before


def test_a_shard_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", shards=3)
    last = tmp_path / "score" / shard_name(2)
    whole = last.read_bytes()
    pq.write_table(source.open_shard(source.manifest.shards[0]).read().slice(0, 5), last)
    with pytest.raises(ContractError, match=r"shard-00002\.parquet .* has 5 rows .* says 34"):
        bucket(source.location, levels=2)
    last.write_bytes(whole[:-40])
    with pytest.raises(ContractError, match=r"shard-00002\.parquet .* not a whole Parquet file"):
        bucket(source.location, levels=2)
    last.write_bytes(bytes(b ^ 0x5A for b in whole[: len(whole) // 2]) + whole[len(whole) // 2 :])
    with pytest.raises(ContractError, match=r"shard-00002\.parquet .* cannot be read"):
        bucket(source.location, levels=2)
    last.unlink()
    with pytest.raises(ContractError, match=r"lacks shard-00002\.parquet"):
        bucket(source.location, levels=2)


def test_a_shard_with_other_columns(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", shards=3)
    last = tmp_path / "score" / shard_name(2)
    pq.write_table(pq.read_table(last).drop_columns(["caption"]), last)
    with pytest.raises(ContractError, match=r"the columns of shard-00002\.parquet"):
        bucket(source.location, levels=2)
    assert not (tmp_path / "bucket" / "manifest.json").exists()


# The output folder


def test_a_finished_output_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = scored(tmp_path / "score")
    bucket(source.location, levels=4, workers=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "bucket").rglob("*")}
    with caplog.at_level(logging.INFO, "aligncurate"):
        again = bucket(source.location, levels=4, workers=3)
    assert "finished already; nothing to do" in caplog.text
    assert again.manifest.rows == 100
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "bucket").rglob("*")} == before


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    source = scored(tmp_path / "score")
    bucket(source.location, levels=4)
    before = files_in(tmp_path / "bucket")
    with pytest.raises(InputError, match=r"levels is 4 there and 5 here; .* --overwrite"):
        bucket(source.location, levels=5)
    with pytest.raises(InputError, match="scheme is 'quantile' there and 'equal-width' here"):
        bucket(source.location, levels=4, scheme="equal-width")
    assert files_in(tmp_path / "bucket") == before


def test_other_data_in_the_same_place_is_refused(tmp_path: Path) -> None:
    bucket(scored(tmp_path / "score").location, levels=4)
    shutil.rmtree(tmp_path / "score")
    changed = scored(tmp_path / "score", cosines(90, seed=9))
    with pytest.raises(InputError, match="input_sha256 is"):
        bucket(changed.location, levels=4)


def test_overwrite_replaces_the_whole_dataset(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", [*cosines(30), None], shards=5)
    bucket(source.location, levels=4)
    source = scored(tmp_path / "other", cosines(30), shards=2)
    dataset = bucket(source.location, tmp_path / "bucket", levels=3, overwrite=True)
    fresh = bucket(source.location, tmp_path / "fresh", levels=3)
    assert files_in(tmp_path / "bucket").keys() == files_in(tmp_path / "fresh").keys()
    assert dataset.manifest.shards == fresh.manifest.shards


def test_scores_that_cannot_be_parted_leave_the_old_output(tmp_path: Path) -> None:
    source = scored(tmp_path / "score")
    bucket(source.location, levels=4)
    before = files_in(tmp_path / "bucket")
    tied = scored(tmp_path / "tied", [0.5] * 9)
    with pytest.raises(InputError, match="only 1 distinct"):
        bucket(tied.location, tmp_path / "bucket", levels=4, overwrite=True)
    assert files_in(tmp_path / "bucket") == before


def test_foreign_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "thesis.tex").write_text("years of work")
    source = scored(tmp_path / "score")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds no dataset \(thesis\.tex lies there\)"):
            bucket(source.location, levels=2, overwrite=overwrite)
    assert files_in(tmp_path / "bucket") == {"thesis.tex": b"years of work"}


def test_a_file_in_the_place_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "bucket").write_text("a file")
    with pytest.raises(InputError, match="bucket is a file; name a folder"):
        bucket(scored(tmp_path / "score").location, levels=2)


class Interrupted(BaseException):
    """What ends a run that cannot say why."""


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", [*cosines(60), None], shards=6)
    out, whole = tmp_path / "bucket", tmp_path / "whole"
    calls = 0

    def interrupt(done: int, rejects: int = 0) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        bucket(source.location, out, levels=4, workers=1, on_progress=interrupt)
    left = files_in(out)
    assert shard_name(0) in left
    assert "manifest.json" not in left
    assert not [name for name in left if name.startswith(UNFINISHED)]
    with pytest.raises(ContractError, match=r"it has no manifest\.json"):
        Dataset(out)
    with pytest.raises(InputError, match=r"holds an unfinished run .* levels is 4 there and 3"):
        bucket(source.location, out, levels=3)
    # As a killed process leaves it: half a shard under a temporary name.
    (out / f"{UNFINISHED}{shard_name(5)}").write_bytes(b"PAR1")

    bucket(source.location, out, levels=4)
    bucket(source.location, whole, levels=4)
    finished, expected = files_in(out), files_in(whole)
    assert finished.pop("manifest.json")
    assert expected.pop("manifest.json")
    assert finished == expected


def test_finished_parts_of_an_interrupted_run_are_not_written_again(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", [*cosines(60), None, float("nan")], shards=6)
    out, whole = tmp_path / "bucket", tmp_path / "whole"

    def interrupt(done: int, rejects: int = 0) -> None:
        if done and (out / shard_name(2)).exists():
            raise Interrupted

    with pytest.raises(Interrupted):
        bucket(source.location, out, levels=4, workers=1, on_progress=interrupt)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}
    assert len(finished) >= 3
    assert not (out / "manifest.json").exists()

    resumed = bucket(source.location, out, levels=4, workers=1)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    quiet = bucket(source.location, whole, levels=4, workers=1)
    left, expected = files_in(out), files_in(whole)
    assert left.pop("manifest.json")
    assert expected.pop("manifest.json")
    assert left == expected
    assert replace(resumed.manifest, created="") == replace(quiet.manifest, created="")
    assert resumed.manifest.rejects == {"non_finite_score": 2}
