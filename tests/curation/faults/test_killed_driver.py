"""SIGKILL of the driver at random moments: going on gives the dataset of the quiet run."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignshared import Dataset
from tests.curation.faults.killing import (
    GONE,
    PAIRS,
    Job,
    kill_after,
    moments,
    start,
    write_input,
)
from tests.curation.stages.test_score import assert_same
from tests.forking import forkserver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEEDS = {"score": range(10), "ingest": range(100, 104)}
EVERY_TIME = {"score": 2, "ingest": 1}
"""Seeds that run every time; the others are nightly."""


class Quiet:
    """The quiet run of a job and how long it took in a process of its own."""

    def __init__(self, job: Job, context: Any) -> None:
        self.job, self.context = job, context
        start(context, job, f"warm-{job.stage}").join()
        began = time.monotonic()
        start(context, job, f"quiet-{job.stage}").join()
        self.seconds = time.monotonic() - began
        self.dataset = Dataset(job.folder / f"quiet-{job.stage}")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, tiny_clip: str) -> Iterator[dict[str, Quiet]]:
    folder = tmp_path_factory.mktemp("killed")
    write_input(folder)
    job = Job("score", folder, tiny_clip)
    context = forkserver()
    yield {stage: Quiet(replace(job, stage=stage), context) for stage in SEEDS}


@pytest.mark.parametrize(
    ("stage", "seed"),
    [
        pytest.param(stage, seed, marks=[pytest.mark.nightly] if i >= EVERY_TIME[stage] else [])
        for stage, seeds in SEEDS.items()
        for i, seed in enumerate(seeds)
    ],
)
def test_a_killed_driver_goes_on(quiet: dict[str, Quiet], stage: str, seed: int):
    calm = quiet[stage]
    output = f"{stage}-{seed}"
    for moment in moments(seed, calm.seconds):
        kill_after(start(calm.context, calm.job, output), moment)
    done = calm.job(output)
    assert done.manifest.rows + done.manifest.reject_count == PAIRS
    assert done.manifest.rejects == {"missing_file": len(GONE)}
    assert_same(done, calm.dataset)
    left: list[Path] = [p for p in Path(done.location).rglob("*") if p.suffix != ".parquet"]
    assert sorted(path.name for path in left) == ["manifest.json", "rejects"]


def test_the_dead_hold_no_lock_and_the_living_do(quiet: dict[str, Quiet]):
    calm = quiet["score"]
    process = start(calm.context, calm.job, "locked")
    lock = calm.job.folder / "locked" / ".run" / "lock"
    while not (lock.exists() and lock.read_text()):
        assert process.exitcode is None
        time.sleep(0.01)
    with pytest.raises(Exception, match=rf"is being written by process {process.pid} on "):
        calm.job("locked")
    assert kill_after(process, 0)
    assert_same(calm.job("locked"), calm.dataset)
