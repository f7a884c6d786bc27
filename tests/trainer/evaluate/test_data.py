"""Which files hold a benchmark's data, and what is said where none does."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignshared import InputError
from aligntrain.cli import app
from aligntrain.evaluate.benchmarks import BENCHMARKS, PAPER, chosen
from aligntrain.evaluate.data import find_data, split_files
from aligntrain.evaluate.pictures import pictures_of
from tests.trainer.evaluate.fixtures import run_that_says_a


def test_names_are_read() -> None:
    names = [(one.name, revision) for one, revision in chosen("mme, pope@0a1b,mme")]
    assert names == [("mme", None), ("pope", "0a1b")]
    assert [one.name for one, _ in chosen("paper")] == list(PAPER)
    with pytest.raises(InputError, match="there is no benchmark 'popo'; give some of vqav2,"):
        chosen("popo")


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


def test_without_network_the_sentence_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as told:
        find_data(BENCHMARKS["pope"], None, None)
    assert str(told.value) == (
        "POPE: its data is not here and the Hub cannot give it (HF_HUB_OFFLINE is set); put "
        "data/test-*.parquet of https://huggingface.co/datasets/lmms-lab-encoder/POPE below "
        "FOLDER/pope/, and give FOLDER as --data."
    )


def test_what_was_fetched_before_is_found_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    place = tmp_path / "datasets--lmms-lab-encoder--POPE"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    file = place / "snapshots" / commit / "data" / "test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = find_data(BENCHMARKS["pope"], None, None)
    assert (found.files, found.revision) == ([str(file)], commit)


def test_a_picture_that_cannot_be_read() -> None:
    with pytest.raises(InputError, match="a picture of the benchmark cannot be read"):
        pictures_of({"image": {"bytes": b"no picture", "path": None}})
    with pytest.raises(InputError, match="a picture of the benchmark cannot be read"):
        pictures_of({"image": "!" * 100})


def test_without_lmms_eval_the_sentence_says_how_to_get_it(
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

    run = run_that_says_a(tmp_path)
    with pytest.raises(InputError, match=f"{name} 0 cannot be"):
        evaluate(run, "pope", Settings(**{name: 0}))


def test_half_a_judge_is_none(tmp_path: Path) -> None:
    said = CliRunner().invoke(
        app, ["eval", str(tmp_path), "--benchmarks", "mm-vet", "--judge-url", "http://127.0.0.1:9"]
    )
    assert said.exit_code == 2
    assert "give --judge-url and --judge-model" in " ".join(said.output.split())
