"""Runs that are killed, and the dataset of the quiet run that they have to end with."""

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from aligncurate import Execution, ingest, score
from alignshared import Dataset
from tests.curation.inputs import record, write_llava
from tests.curation.pictures import photo

PAIRS = 96
SHARD_ROWS = 8
GONE = range(5, PAIRS, 17)
"""Pairs without a picture, so that rejects have to come out right too."""


@dataclass(frozen=True)
class Job:
    """What a run does; it can be sent to another process."""

    stage: str
    folder: Path
    model: str
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    workers: int = 2

    def __call__(self, name: str, **options: Any) -> Dataset:
        """Run it to the end, into the folder `name`."""
        common: dict[str, Any] = {
            "input": self.folder / "in" / "pairs.json",
            "output": self.folder / name,
            "image_root": str(self.folder / "in" / "images"),
            "shard_rows": SHARD_ROWS,
        }
        if self.stage == "ingest":
            return ingest(**common, **options)
        # A test's cluster claims GPUs that this machine has not.
        execution = Execution(self.engine, self.workers, gpus=0, ray_address=self.ray_address)
        return score(**common, model=self.model, batch_size=4, execution=execution, **options)


def write_input(folder: Path, pairs: int = PAIRS) -> None:
    """`folder/in`: pairs with small pictures, some of which are missing."""
    names = [f"p{number:04d}" for number in range(pairs)]
    pictures = {
        f"{name}.jpg": photo(number % 40) for number, name in enumerate(names) if number not in GONE
    }
    write_llava(folder / "in", [record(name) for name in names], pictures)


def start(context: Any, job: Callable[..., Any], name: str) -> BaseProcess:
    """`job(name)` in a process of its own, which leads a process group."""
    process = context.Process(target=_lead, args=(job, name))
    process.start()
    return process


def _lead(job: Callable[..., Any], name: str) -> None:
    os.setsid()
    job(name)


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """SIGKILL `process` after `seconds`; whether it was still at work."""
    process.join(seconds)
    if process.exitcode is not None:
        return False
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return True


def moments(seed: int, longest: float) -> list[float]:
    """When to kill, one after another."""
    return [random.Random(seed + i).uniform(0.05, 1) * longest for i in (0, 1000)]
