"""Training with torch.compile: the same losses, and a sentence where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aligntrain.runs.folder import read_metrics
from aligntrain.train.run import prepare
from tests.trainer import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and instruction data."""
    place = tmp_path_factory.mktemp("place")
    runs.recipe_file(place)
    runs.talks(place / "talks")
    return place


def finetune(
    place: Path, output: Path, *overrides: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Three steps in a process of their own: what torch warns of while it compiles is no error."""
    prepare(
        "finetune", place / "talks", recipe=place / "tiny.yaml", output=output, start="none",
        overrides=("max_steps=3", *overrides),
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "aligntrain.train", output],
        env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.nightly
@pytest.mark.timeout(900)  # a compiler's time, not ours
def test_compiled_layers_learn_the_same(place: Path, tmp_path: Path) -> None:
    assert finetune(place, tmp_path / "eager").returncode == 0
    done = finetune(
        place, tmp_path / "run", "compile=true",
        TORCH_LOGS="output_code", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Output code" in done.stderr  # something was compiled
    eager, compiled = (read_metrics(run) for run in (tmp_path / "eager", tmp_path / "run"))
    assert runs.losses(compiled) == pytest.approx(runs.losses(eager), abs=1e-5)
    assert runs.held_out(compiled) == pytest.approx(runs.held_out(eager), abs=1e-5)


def test_without_a_compiler_it_says_so_before_the_first_step(place: Path, tmp_path: Path) -> None:
    done = finetune(
        place, tmp_path / "run", "compile=true",
        CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: compile=true cannot be had here (")
    assert "no-such-compiler" in last
    assert last.endswith("set compile to false.")
