"""Which files hold a benchmark's data, and what is said where none does."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignshared import InputError
from aligntrain.cli import app
from aligntrain.evaluate.benchmarks import BENCHMARKS, PAPER, parse_benchmarks
from aligntrain.evaluate.data import fetch, find_data, images_of, split_files
from tests.trainer.evaluate.fixtures import run_that_says_a
from tests.trainer.evaluate.stub_hub import Hub, serving, unreachable


def test_names_are_read() -> None:
    names = [(one.name, revision) for one, revision in parse_benchmarks("mme, pope@0a1b,mme")]
    assert names == [("mme", None), ("pope", "0a1b")]
    assert [one.name for one, _ in parse_benchmarks("paper")] == list(PAPER)
    with pytest.raises(InputError, match="there is no benchmark 'popo'; give some of vqav2,"):
        parse_benchmarks("popo")


def test_the_split_is_found_among_all_files() -> None:
    names = [
        "data/test-00000-of-00002.parquet", "data/test-00001-of-00002-0a1b2c3d.parquet",
        "data/train-00000-of-00001.parquet", "Full/test-00000-of-00001.parquet", "README.md",
        "data/testdev-00000-of-00001.parquet",
    ]  # fmt: skip
    assert split_files(names, BENCHMARKS["pope"]) == names[:2]
    mmbench = ["en/dev-00000-of-00001.parquet", "cn/dev-00000-of-00001.parquet"]
    assert split_files(mmbench, BENCHMARKS["mmbench"]) == mmbench[:1]
    assert split_files(mmbench, BENCHMARKS["mmbench-cn"]) == mmbench[1:]
    assert split_files(["dev.parquet"], BENCHMARKS["mmbench"]) == []
    assert split_files(["test.parquet"], BENCHMARKS["pope"]) == ["test.parquet"]


def test_a_folder_may_hold_one_file_or_those_of_the_hub(tmp_path: Path) -> None:
    for name in ("mme.parquet", "mmbench.tsv", "pope/data/test-00000-of-00001.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, ending in (("mme", "mme.parquet"), ("mmbench", "mmbench.tsv"), ("pope", "test")):
        assert ending in find_data(BENCHMARKS[name], tmp_path, None).files[0]
    with pytest.raises(InputError, match=r"MMBench-CN dev: no data in .*; put cn/dev-\*\.parquet"):
        find_data(BENCHMARKS["mmbench-cn"], tmp_path, None)
    with pytest.raises(InputError, match="there is no folder"):
        find_data(BENCHMARKS["mme"], tmp_path / "nothing", None)


def touched(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_a_part_of_the_files_is_not_the_data(tmp_path: Path) -> None:
    some = [tmp_path / f"pope/data/test-0000{i}-of-00003.parquet" for i in range(3)]
    touched(some[0], some[2])
    with pytest.raises(InputError, match=r"POPE: only 2 of 3 files like data/test-00000-of-00003"):
        find_data(BENCHMARKS["pope"], tmp_path, None)
    touched(some[1])
    assert len(find_data(BENCHMARKS["pope"], tmp_path, None).files) == 3


def test_questions_of_gqa_are_nothing_without_pictures(tmp_path: Path) -> None:
    one = "testdev-00000-of-00001.parquet"
    touched(tmp_path / "gqa" / "testdev_balanced_instructions" / one)
    with pytest.raises(InputError, match=r"GQA: no testdev_balanced_images/ in .*; put testdev_"):
        find_data(BENCHMARKS["gqa"], tmp_path, None)
    touched(tmp_path / "gqa" / "testdev_balanced_images" / one)
    assert find_data(BENCHMARKS["gqa"], tmp_path, None).images


def test_without_network_the_sentence_says_what_to_put_where(tmp_path: Path) -> None:
    with unreachable(tmp_path), pytest.raises(InputError) as told:
        find_data(BENCHMARKS["pope"], None, None)
    assert str(told.value) == (
        "POPE: its data is not here and the Hub cannot give it (HF_HUB_OFFLINE is set); put "
        "data/test-*.parquet of https://huggingface.co/datasets/lmms-lab-encoder/POPE below "
        "FOLDER/pope/, and give FOLDER as --data."
    )


OLD, NEW = "a" * 40, "b" * 40
PARTS = [f"data/test-0000{i}-of-00002.parquet" for i in range(2)]


@pytest.fixture
def hub() -> Hub:
    """One whose main is NEW."""
    return Hub({commit: dict.fromkeys(PARTS, commit.encode()) for commit in (OLD, NEW)}, NEW)


@pytest.mark.parametrize(("revision", "commit"), [(None, NEW), ("main", NEW), (OLD, OLD)])
def test_what_was_fetched_before_is_found_without_network(
    hub: Hub, revision: str | None, commit: str, tmp_path: Path
) -> None:
    pope = BENCHMARKS["pope"]
    with serving(hub, tmp_path):
        found = find_data(pope, None, revision)
        assert (found.revision, found.files) == (commit, PARTS)
        assert not list(tmp_path.rglob("*.parquet"))  # found, not fetched
        before = fetch(pope, found)
    with unreachable(tmp_path):
        again = find_data(pope, None, revision)
    assert again == before
    assert [Path(file).read_text() for file in again.files] == [commit] * 2


def test_half_of_what_was_to_be_fetched_is_not_found_without_network(
    hub: Hub, tmp_path: Path
) -> None:
    with serving(hub, tmp_path):
        fetch(BENCHMARKS["pope"], find_data(BENCHMARKS["pope"], None, None))
    next(tmp_path.rglob("test-00001*")).unlink()
    with unreachable(tmp_path), pytest.raises(InputError, match="POPE: its data is not here"):
        find_data(BENCHMARKS["pope"], None, None)


def test_data_that_changes_while_it_is_fetched_is_refused(hub: Hub, tmp_path: Path) -> None:
    with serving(hub, tmp_path):
        found = find_data(BENCHMARKS["pope"], None, None)
        hub.main = OLD
        with pytest.raises(InputError, match=r"main of the Hub's .* has changed while it was"):
            fetch(BENCHMARKS["pope"], found)


def test_a_picture_that_cannot_be_read() -> None:
    with pytest.raises(InputError, match="an image of the benchmark cannot be read"):
        images_of({"image": {"bytes": b"no picture", "path": None}})
    with pytest.raises(InputError, match="an image of the benchmark cannot be read"):
        images_of({"image": "!" * 100})


def test_without_datasets_the_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntrain.evaluate import evaluate

    run = run_that_says_a(tmp_path)
    monkeypatch.setattr("aligntrain.evaluate.run.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'aligntrain\[eval\]'.*uv sync --group eval"):
        evaluate(run, "pope")


@pytest.mark.parametrize("name", ["limit", "max_new_tokens", "batch_size"])
def test_numbers_that_cannot_be(tmp_path: Path, name: str) -> None:
    from aligntrain.evaluate import Settings, evaluate

    option = name.replace("_", "-")
    run = run_that_says_a(tmp_path)
    with pytest.raises(InputError, match=rf"--{option} must be at least 1 \(got 0\)"):
        evaluate(run, "pope", Settings(**{name: 0}))


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_that_says_a(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "4")
    said = CliRunner().invoke(app, ["eval", str(run), "--benchmarks", "pope"])
    assert said.exit_code == 2
    sentence = " ".join(said.output.split())
    assert "a single process, but a launcher started 4 (WORLD_SIZE); start one for each" in sentence


def test_half_a_judge_is_none(tmp_path: Path) -> None:
    said = CliRunner().invoke(
        app, ["eval", str(tmp_path), "--benchmarks", "mm-vet", "--judge-url", "http://127.0.0.1:9"]
    )
    assert said.exit_code == 2
    assert "give --judge-url and --judge-model" in " ".join(said.output.split())
