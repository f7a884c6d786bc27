"""The files for clusters parse, and what they call is there."""

import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from aligncurate.cli import app
from aligncurate.settings import Execution

FOLDER = Path(__file__).parents[2] / "pipelines" / "cluster"


def rayjob() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "kuberay-rayjob.yaml").read_text())


def slurm() -> str:
    return (FOLDER / "slurm-score.sbatch").read_text()


def commands() -> list[str]:
    script = slurm().replace("\\\n", " ")
    found = [line for line in script.splitlines() if line.strip().startswith("aligncurate")]
    found += re.findall(r"aligncurate score .*", script)
    guide = (FOLDER.parents[1] / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    found += re.findall(r"^(?:uv run )?aligncurate .*", guide, re.MULTILINE)
    return [*found, rayjob()["spec"]["entrypoint"]]


@pytest.mark.parametrize("line", commands())
def test_commands_are_real(line: str):
    line = re.sub(r"\$\(\(.*?\)\)", "4", line.removeprefix("uv run ")).partition(" #")[0]
    words = shlex.split(line)
    assert words[0] == "aligncurate"
    apps: Any = get_command(app)
    known = {option: p.name for p in apps.commands[words[1]].params for option in p.opts}
    given = {word: value for word, value in pairwise([*words, ""]) if word.startswith("--")}
    assert given.keys() <= known.keys()
    fields = {known[option]: value for option, value in given.items()}
    kinds: dict[str, Any] = {"gpus_per_worker": float, "memory_per_worker": float,
                             "unit_timeout": float}  # fmt: skip
    names = Execution.__dataclass_fields__.keys() & fields.keys()
    Execution(**{name: kinds.get(name, str)(fields[name]) for name in names})


def test_the_job_has_what_kuberay_requires():
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert {"rayStartParams", "template"} <= group.keys()
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= container.keys()
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas"} <= group.keys()
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_job_names_the_version_of_ray_in_the_lock():
    lock = (FOLDER.parents[1] / "uv.lock").read_text()
    locked = re.search(r'name = "ray"\nversion = "([^"]+)"', lock)
    assert locked is not None
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == locked[1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_is_a_script():
    checked = subprocess.run(
        ["bash", "-n", FOLDER / "slurm-score.sbatch"], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
