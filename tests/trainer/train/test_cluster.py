"""Several machines: the files of `pipelines/cluster` work, and runs change their number of ranks.

A 'machine' is a torchrun of its own on this one; they meet over the loopback.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from aligntrain.cli import app
from aligntrain.runs.folder import read_metrics, result_of
from aligntrain.train.checkpoint import checkpoints
from aligntrain.train.run import prepare, run
from tests.trainer import runs

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "pipelines" / "cluster"
SCRIPTS = ("slurm-train.sbatch", "train-torchrun.sh")
LIMIT_S = 600


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    runs.recipe_file(place)
    runs.pairs(place / "pairs")
    runs.talks(place / "talks")
    return place


@pytest.fixture
def machine() -> dict[str, str]:
    """The environment of a machine without GPUs, and a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return {
        **os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "HEAD": "127.0.0.1", "PORT": str(port), "GPUS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip


def together(command: list[Any], count: int, environment: dict[str, str]) -> None:
    """Run `command` on `count` machines at once; all have to succeed."""
    machines = [subprocess.Popen(command, env=environment) for _ in range(count)]
    assert [machine.wait(LIMIT_S) for machine in machines] == [0] * count


def commands() -> list[str]:
    found: list[str] = []
    for file in (*(FOLDER / name for name in SCRIPTS), ROOT / "docs" / "scaling.md"):
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^ *(?:uv run )?(aligntrain .*)", text, re.MULTILINE)
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_are_real(line: str) -> None:
    line = line.replace('"${changes[@]}"', "--set a=b").partition(" #")[0]
    line = re.sub(r"\$\{FROM:\+(.*?)\}$", r"\1", line.strip())
    words = shlex.split(line)
    apps: Any = get_command(app)
    command = apps.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word, _ in pairwise([*words, ""]) if word.startswith("--")} <= known


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_scripts_are_scripts(name: str) -> None:
    checked = subprocess.run(
        ["bash", "-n", FOLDER / name], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_hostfile_is_one_of_the_deepspeed_launcher() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(FOLDER / "hostfile"))) == {"node-1": 8, "node-2": 8}


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_two_machines_learn_what_one_process_learns(
    place: Path, tmp_path: Path, machine: dict[str, str]
) -> None:
    given: dict[str, Any] = {"recipe": place / "tiny.yaml", "overrides": ["zero_stage=3"]}
    prepare("pretrain", place / "pairs", output=tmp_path / "one", **given)
    alone = runs.losses(runs.train(tmp_path / "one"))
    prepare("pretrain", place / "pairs", output=tmp_path / "two", **given)
    script = [FOLDER / "train-torchrun.sh"]
    together(script, 2, {**machine, "NODES": "2", "RUN": str(tmp_path / "two")})
    assert runs.losses(read_metrics(tmp_path / "two")) == pytest.approx(alone, abs=2e-5)
    assert result_of(tmp_path / "two") is not None


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.nightly), 3])
def test_two_processes_resume_as_one_and_as_two_machines(
    place: Path, tmp_path: Path, machine: dict[str, str], forked: None, stage: int
) -> None:
    output = tmp_path / "run"
    given: dict[str, Any] = {
        "recipe": place / "tiny.yaml", "start": "none",
        "overrides": [f"zero_stage={stage}", "checkpoint.keep=9"],
    }  # fmt: skip
    prepare("finetune", place / "talks", output=tmp_path / "whole", **given)
    whole = runs.losses(runs.train(tmp_path / "whole"))
    run("finetune", place / "talks", output=output, nproc=2, **given)
    _back_to(output, 2)
    run("finetune", place / "talks", output=output, nproc=1, resume=True, **given)
    assert runs.losses(read_metrics(output)) == pytest.approx(whole, abs=1e-4)
    _back_to(output, 4)
    script = [FOLDER / "train-torchrun.sh"]
    together(script, 2, {**machine, "NODES": "2", "RUN": str(output)})
    assert runs.losses(read_metrics(output)) == pytest.approx(whole, abs=1e-4)
    assert [saved.meta["ranks"] for saved in checkpoints(output)] == [2, 1, 2]


def _back_to(output: Path, step: int) -> None:
    """As if the run had been killed after the checkpoint of `step`."""
    for later in checkpoints(output):
        if later.step > step:
            shutil.rmtree(later.folder)
    (output / "finished.json").unlink()


SCONTROL = "#!/bin/sh\necho 127.0.0.1\necho other-machine\n"
SRUN = '#!/bin/sh\nshift\n"$@" & one=$!\n"$@" & other=$!\nwait $one && wait $other\n'
"""Slurm as the script meets it: names of machines, and a command that runs on both."""


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_the_slurm_script_prepares_trains_and_ends(
    place: Path, tmp_path: Path, machine: dict[str, str]
) -> None:
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **machine, "PATH": f"{tmp_path}:{machine['PATH']}", "SLURM_NNODES": "2",
        "SLURM_JOB_ID": machine["PORT"], "SLURM_JOB_NODELIST": "machine-[1-2]",
        "SLURM_CPUS_PER_TASK": "1", "SLURM_GPUS_PER_NODE": "1", "PHASE": "pretrain",
        "DATA": str(place / "pairs"), "RECIPE": str(place / "tiny.yaml"),
        "OUTPUT": str(tmp_path / "run"), "SET": "zero_stage=2 seed=7",
    }  # fmt: skip
    script = ["bash", FOLDER / "slurm-train.sbatch"]
    for said in ("run", "is finished."):
        done = subprocess.run(
            script, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True
        )
        assert said in done.stdout
    assert len(runs.losses(read_metrics(tmp_path / "run"))) == 6
    saved = checkpoints(tmp_path / "run")[-1].meta
    assert saved["ranks"] == 2
    assert (saved["recipe"]["zero_stage"], saved["recipe"]["seed"]) == (2, 7)
    del environment["DATA"]
    refused = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "set DATA to the dataset" in refused.stderr
