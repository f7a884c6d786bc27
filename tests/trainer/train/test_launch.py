"""Processes start together, agree, and end together, whoever starts them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alignshared import AlignError, InputError
from aligntrain.runs.folder import read_metrics, result_of
from aligntrain.train.checkpoint import newest_checkpoint
from aligntrain.train.launch import launch, process_count
from aligntrain.train.run import prepare, run
from tests.trainer import runs

LIMIT_S = 400
"""For a run of two processes; a hang would last for ever."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and two datasets."""
    place = tmp_path_factory.mktemp("place")
    runs.recipe_file(place)
    runs.pairs(place / "pairs")
    runs.talks(place / "talks")
    return place


def prepared(place: Path, output: Path, *overrides: str) -> Path:
    """A pre-training that nobody has started."""
    recipe = place / "tiny.yaml"
    return prepare("pretrain", place / "pairs", recipe=recipe, output=output, overrides=overrides)


def on_cpu() -> dict[str, str]:
    return {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def alive(folder: Path) -> list[int]:
    """Processes whose command line names `folder`."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(folder) in command:
                found.append(int(entry.name))
    return found


def ends(folder: Path, seconds: float = 60) -> bool:
    """Whether all processes that work on `folder` end within `seconds`."""
    deadline = time.monotonic() + seconds
    while alive(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not alive(folder)


def test_impossible_numbers_of_processes_are_refused() -> None:
    with pytest.raises(InputError, match=r"--nproc must be at least 1 \(got 0\)"):
        process_count(0)
    assert process_count(1) == 1


def test_a_batch_that_does_not_divide_is_refused_before_anything_starts(
    place: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"global_size 8 is no multiple of 12, .* 3 processes"):
        run(
            "pretrain", place / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run",
            nproc=3,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(120)
def test_what_a_worker_finds_wrong_reaches_the_caller(place: Path, tmp_path: Path) -> None:
    folder = prepared(place, tmp_path / "run")
    (folder / "recipe.yaml").write_text("name: tiny\n")
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        launch(folder, nproc=2)
    assert ends(folder)


@pytest.mark.timeout(120)
def test_a_worker_that_dies_is_told_of(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(place, tmp_path / "run")
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "if os.environ.get('RANK') == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with pytest.raises(AlignError, match=r"process 2 of 2 was killed \(signal 9\).*rank-1\.log"):
        launch(folder, nproc=2)
    assert ends(folder)


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.nightly), 2, 3])
def test_two_processes_learn_what_one_learns(
    request: pytest.FixtureRequest, place: Path, tmp_path: Path, stage: int
) -> None:
    if stage != 3:  # one launch is enough
        request.getfixturevalue("forked")
    given: dict[str, Any] = {
        "recipe": place / "tiny.yaml",
        "overrides": [f"zero_stage={stage}"],
    }
    prepare("pretrain", place / "pairs", output=tmp_path / "one", **given)
    by_one = runs.train(tmp_path / "one")
    two = run("pretrain", place / "pairs", output=tmp_path / "two", nproc=2, **given)
    for measured in (runs.losses, runs.held_out):
        together = measured(read_metrics(two.folder))
        assert together == pytest.approx(measured(by_one), abs=2e-5)
    assert two.ending["rejected"] == {}


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize(
    "text_every",
    [1, 2, pytest.param(1000, marks=pytest.mark.nightly)],
    ids=["text", "mixed", "images"],
)
def test_ranks_with_and_without_images_do_not_wait_for_each_other(
    place: Path, tmp_path: Path, forked: None, text_every: int
) -> None:
    """Ungrouped rows in micro-batches of one: one rank has an image where the other has none, and
    more pieces of logits.
    """
    runs.talks(tmp_path / "talks", 24, text_every)
    result = run(
        "finetune", tmp_path / "talks", recipe=place / "tiny.yaml", output=tmp_path / "run",
        start="none", nproc=2,
        overrides=[
            "zero_stage=3", "batch.micro_size=1", "data.group_by_length=false",
            "batch.logits_mb=0.01",
        ],
    )  # fmt: skip
    assert len(runs.losses(read_metrics(result.folder))) == 6


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_a_rank_whose_rows_are_all_rejected_takes_part(
    place: Path, tmp_path: Path, forked: None
) -> None:
    from tests.trainer import rows

    broken = rows.pair_rows(48, runs.LEVELS)
    broken[7]["image"] = {"bytes": b"no picture", "path": "7.png"}
    rows.write_rows(tmp_path / "pairs", broken, levels=runs.LEVELS)
    result = run(
        "pretrain", tmp_path / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run",
        nproc=2,
        overrides=[
            "zero_stage=3", "batch.micro_size=1", "data.max_reject_share=0.5",
            "data.validation_share=0",
        ],
    )  # fmt: skip
    assert result.ending["rejected"] == {"corrupt_image": 1}


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_torchrun_starts_it_as_well(place: Path, tmp_path: Path) -> None:
    folder = prepared(place, tmp_path / "run")
    torchrun = Path(sys.executable).with_name("torchrun")
    subprocess.run(
        [
            torchrun, "--nproc-per-node", "2", "--master-port", "29613",
            "-m", "aligntrain.train", folder,
        ],
        env=on_cpu(), check=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert result_of(folder) is not None


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_the_deepspeed_launcher_starts_it_as_well(place: Path, tmp_path: Path) -> None:
    folder = prepared(place, tmp_path / "run")
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    deepspeed = Path(sys.executable).with_name("deepspeed")
    subprocess.run(
        [
            deepspeed, "--hostfile", tmp_path / "hosts", "--no_ssh", "--node_rank", "0",
            "--master_addr", "127.0.0.1", "--master_port", "29614",
            "--module", "aligntrain.train", folder,
        ],
        env={**on_cpu(), "PATH": f"{deepspeed.parent}:{os.environ['PATH']}"},
        check=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert result_of(folder) is not None


def _launching(folder: Path) -> "subprocess.Popen[bytes]":
    """A process that launches two workers on `folder`, in whose steps it returns."""
    code = (
        "import pathlib, sys; from aligntrain.train.launch import launch; "
        "launch(pathlib.Path(sys.argv[1]), nproc=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder], env=on_cpu())
    while process.poll() is None and not read_metrics(folder):
        time.sleep(0.1)
    assert process.poll() is None, "it ended before its first step"
    return process


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_what_launched_them(
    place: Path, tmp_path: Path, how: signal.Signals
) -> None:
    folder = prepared(place, tmp_path / "run", "max_steps=100000")
    process = _launching(folder)
    process.send_signal(how)
    process.wait(60)
    assert ends(folder)
    newest = newest_checkpoint(folder)
    shutil.rmtree(folder / "tensorboard")
    assert newest is None or newest.step > 0
