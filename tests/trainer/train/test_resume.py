"""A run that was stopped goes on as if it had not been."""

import json
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from alignshared import InputError, atomic
from aligntrain.runs.folder import read_metrics, read_run, result_of
from aligntrain.train import checkpoint
from aligntrain.train.checkpoint import checkpoints, newest_checkpoint
from aligntrain.train.run import prepare, run
from tests.trainer import runs
from tests.trainer.ranks import start_ranks


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, two datasets, and runs that nobody stopped."""
    place = tmp_path_factory.mktemp("place")
    recipe = runs.recipe_file(place)
    runs.pairs(place / "pairs")
    runs.talks(place / "talks")
    prepare("pretrain", place / "pairs", recipe=recipe, output=place / "pretrain")
    runs.train(place / "pretrain")
    prepare(
        "finetune", place / "talks", recipe=recipe, output=place / "finetune",
        start=place / "pretrain",
    )  # fmt: skip
    runs.train(place / "finetune")
    return place


def stopped(place: Path, phase: str, copy: Path) -> Path:
    """A copy of the run of `phase` as if it had been killed in its fifth step."""
    shutil.copytree(place / phase, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    shutil.rmtree(copy / "export")
    (copy / "finished.json").unlink()
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    return copy


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_losses_and_weights_are_the_same_to_the_bit(
    place: Path, tmp_path: Path, phase: str
) -> None:
    half = stopped(place, phase, tmp_path / "half")
    resumed = runs.train(half, resume=True)
    whole = read_metrics(place / phase)
    assert runs.losses(resumed) == runs.losses(whole)
    assert runs.held_out(resumed) == runs.held_out(whole)
    assert list(runs.losses(resumed)) == [1, 2, 3, 4, 5, 6]
    ours, theirs = (
        load_file(folder / "export" / "model.safetensors") for folder in (half, place / phase)
    )
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_zero_stage_may_change(place: Path, tmp_path: Path, stage: int) -> None:
    half = stopped(place, "finetune", tmp_path / "half")
    prepare(
        "finetune", place / "talks", recipe=place / "tiny.yaml", output=half, resume=True,
        start=place / "pretrain", overrides=[f"zero_stage={stage}", "batch.micro_size=8"],
    )  # fmt: skip
    resumed = runs.losses(runs.train(half, resume=True))
    assert resumed == pytest.approx(runs.losses(read_metrics(place / "finetune")), abs=1e-4)


def test_without_resume_an_unfinished_run_is_left_alone(place: Path, tmp_path: Path) -> None:
    half = stopped(place, "pretrain", tmp_path / "half")
    with pytest.raises(InputError, match=r"checkpoint of step 4; give --resume"):
        prepare("pretrain", place / "pairs", recipe=place / "tiny.yaml", output=half)
    with pytest.raises(InputError, match=r"checkpoint of step 4; give --resume"):
        runs.train(half)


def test_a_finished_run_is_not_run_again(place: Path) -> None:
    again = run("pretrain", place / "pairs", recipe=place / "tiny.yaml", output=place / "pretrain")
    assert again.before
    assert again.ending["steps"] == 6


def test_a_run_of_another_recipe_or_data_is_refused(place: Path, tmp_path: Path) -> None:
    recipe, output = place / "tiny.yaml", place / "pretrain"
    with pytest.raises(InputError, match=r"another recipe .*seed: 0 there, 1 here.* --output"):
        prepare("pretrain", place / "pairs", recipe=recipe, output=output, overrides=["seed=1"])
    runs.pairs(tmp_path / "pairs", 40)
    with pytest.raises(InputError, match="other data"):
        prepare("pretrain", tmp_path / "pairs", recipe=recipe, output=output, resume=True)


def test_a_run_that_made_no_step_may_be_made_anew(place: Path, tmp_path: Path) -> None:
    recipe = place / "tiny.yaml"
    prepare("pretrain", place / "pairs", recipe=recipe, output=tmp_path / "run")
    prepare("pretrain", place / "pairs", recipe=recipe, output=tmp_path / "run",
            overrides=["seed=1"])  # fmt: skip
    assert read_run(tmp_path / "run").recipe.seed == 1


def test_data_that_changed_is_refused(place: Path, tmp_path: Path) -> None:
    half = stopped(place, "pretrain", tmp_path / "half")
    told = json.loads((half / "run.json").read_text())
    (half / "run.json").write_text(json.dumps({**told, "data_sha256": "0" * 64}))
    with pytest.raises(InputError, match="has changed since the run"):
        runs.train(half, resume=True)


def test_a_folder_of_something_else_is_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are not a run's"):
        prepare("pretrain", place / "pairs", recipe=place / "tiny.yaml", output=tmp_path)


def test_death_while_a_checkpoint_is_written_leaves_the_one_before(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = stopped(place, "pretrain", tmp_path / "half")

    write = atomic.write

    def dies(path: Path, content: str | bytes) -> None:
        if path.name == checkpoint.MARKER:  # the last file
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(atomic, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        runs.train(half, resume=True)
    assert [c.step for c in checkpoints(half)] == [4]
    monkeypatch.undo()
    runs.train(half, resume=True)
    assert [p.name for p in sorted((half / "checkpoints").iterdir())] == [
        "step-00000004",
        "step-00000006",
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_sigkill_at_any_moment(place: Path, tmp_path: Path, seed: int) -> None:
    recipe, output = place / "tiny.yaml", tmp_path / "run"
    longer = ["max_steps=40", "checkpoint.every=1", "log.validate_every=20"]
    prepare("pretrain", place / "pairs", recipe=recipe, output=tmp_path / "whole", overrides=longer)
    whole = runs.losses(runs.train(tmp_path / "whole"))
    prepare("pretrain", place / "pairs", recipe=recipe, output=output, overrides=longer)
    wait = random.Random(seed)
    kills = 0
    while result_of(output) is None:
        (process,) = start_ranks(output, resume=True)
        if kills < 5:
            _until_it_trains(output, process)
            time.sleep(wait.random() / 2)
            process.kill()
            kills += 1
        process.join(300)
        assert process.exitcode in (0, -signal.SIGKILL)
        newest = newest_checkpoint(output)
        assert newest is None or newest.step <= 40
    assert runs.losses(read_metrics(output)) == whole


def _until_it_trains(output: Path, process: BaseProcess) -> None:
    """Wait for a step more than there was."""
    before = len(read_metrics(output))
    while process.exitcode is None and len(read_metrics(output)) <= before:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "stage",
    [pytest.param(0, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.nightly), 3],
)
def test_two_processes_resume_as_one_and_one_as_two(
    place: Path, tmp_path: Path, forked: None, stage: int
) -> None:
    output = tmp_path / "run"
    whole = runs.losses(read_metrics(place / "finetune"))
    for nproc, kept in ((2, 2), (1, 4), (2, 6)):
        run(
            "finetune", place / "talks", recipe=place / "tiny.yaml", start=place / "pretrain",
            output=output, nproc=nproc, resume=True,
            overrides=[f"zero_stage={stage}", "checkpoint.keep=9"],
        )  # fmt: skip
        assert runs.losses(read_metrics(output)) == pytest.approx(whole, abs=1e-4)
        for later in checkpoints(output):
            if later.step > kept:
                shutil.rmtree(later.folder)
        (output / "finished.json").unlink()
