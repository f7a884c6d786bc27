"""Where the numbers of a run go beside `metrics.jsonl`, as `log.track` of its recipe says.

    tensorboard   `tensorboard/` in the run folder
    wandb         Weights & Biases: `wandb/` in the run folder, offline unless WANDB_MODE says
                  otherwise; `wandb sync` sends it later
    trackio       `trackio/` in the run folder, unless TRACKIO_DIR says otherwise

A library is imported where it is named and nowhere else. A run that goes on is the same run there
too, by the id in `tracking.json`. Where the trackers already have steps that come again,
TensorBoard hides the old values, Weights & Biases keeps them, and trackio shows both.
"""

import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from alignshared import InputError, atomic
from aligntrain.recipes.schema import Recipe, Track
from aligntrain.runs.folder import METRICS, Job
from aligntrain.train.metrics import read_metrics

TENSORBOARD = "tensorboard"
TRACKING = "tracking.json"
PROJECT = "aligntrain"


class Tracker(Protocol):
    """Takes the numbers of a line by their names, with slashes for what belongs together."""

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Record `scalars` of `step`."""
        ...

    def close(self) -> None:
        """End in good order."""
        ...


def check_trackers(recipe: Recipe) -> None:
    """Raise InputError where a tracker that `recipe` names is not installed."""
    for name in recipe.log.track:
        if find_spec(name) is None:
            raise InputError(
                f"log.track has {name}, which is not installed; run `pip install {name}`, or take "
                "it out of the list."
            )


def open_trackers(job: Job, step: int) -> list[Tracker]:
    """The trackers of `job`, which goes on after `step` steps; rank 0 alone has them.

    Raises:
        InputError: one is not installed.
    """
    check_trackers(job.recipe)
    kinds: dict[Track, Callable[[Job, int], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "trackio": Trackio,
    }
    return [kinds[name](job, step) for name in dict.fromkeys(job.recipe.log.track)]


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, job: Job, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._board = SummaryWriter(os.fspath(job.folder / TENSORBOARD), purge_step=step + 1)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """A run of the project WANDB_PROJECT, or `aligntrain`."""

    def __init__(self, job: Job, step: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb: Any = import_module("wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        # Neither the machine nor the code of the user is anybody's business.
        quiet = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_name(job),
            id=_id(job),
            dir=os.fspath(job.folder),
            config=job.recipe.settings,
            mode=mode,
            resume="allow",
            settings=quiet,
        )

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project TRACKIO_PROJECT, or `aligntrain`."""

    def __init__(self, job: Job, step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", os.fspath((job.folder / "trackio").absolute()))
        with _on_stderr():
            self._trackio: Any = import_module("trackio")
            self._run: Any = self._trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=f"{_name(job)}-{_id(job)}",
                config=job.recipe.settings,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        # Not the run's own `finish`, after which trackio would end it once more, loudly, at exit.
        with _on_stderr():
            self._trackio.finish()


def _on_stderr() -> AbstractContextManager[Any]:
    """What a library prints within it is no result of a command."""
    return redirect_stdout(sys.stderr)


def _name(job: Job) -> str:
    return job.folder.absolute().name


def _id(job: Job) -> str:
    """What the run of `job` is called where others are, the same whenever it goes on."""
    path = job.folder / TRACKING
    if path.is_file():
        return str(json.loads(path.read_bytes())["id"])
    chosen = uuid.uuid4().hex[:12]
    atomic.write(path, json.dumps({"id": chosen}) + "\n")
    return chosen


class Recorder:
    """Writes to `metrics.jsonl` in `folder` and to `trackers`.

    Lines of steps after `step`, which a run wrote before it was killed, are taken out: those steps
    come again.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = folder / METRICS
        _cut(self._path, step)
        self._lines = self._path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, line: dict[str, Any]) -> None:
        """Record `line`, which has a `step`."""
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        scalars = {name: value for name, value in _scalars(line) if name != "step"}
        for tracker in self._trackers:
            tracker.write(scalars, line["step"])

    def close(self) -> None:
        """End the file and the trackers."""
        self._lines.close()
        for tracker in self._trackers:
            tracker.close()


def _cut(path: Path, step: int) -> None:
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    atomic.write(path, "".join(json.dumps(line) + "\n" for line in kept))


def _scalars(value: Any, name: str = "") -> list[tuple[str, float]]:
    """The numbers in `value` by names with slashes; a list counts from 1, as levels do."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = ((str(place), item) for place, item in enumerate(value, start=1))
    else:
        return [] if value is None else [(name, float(value))]
    inside = f"{name}/" if name else ""
    return [scalar for key, item in items for scalar in _scalars(item, f"{inside}{key}")]
