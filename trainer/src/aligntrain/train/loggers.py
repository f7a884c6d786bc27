"""Metric loggers: `metrics.jsonl`, and the services that `log.track` of a recipe names.

    tensorboard   `tensorboard/` in the run folder
    wandb         Weights & Biases: `wandb/` in the run folder, offline unless WANDB_MODE says
                  otherwise; `wandb sync` sends it later
    trackio       `trackio/` in the run folder, unless TRACKIO_DIR says otherwise

A library is imported only if a recipe names it. A resumed run keeps its id, from `tracking.json`.
For steps that are repeated after a resume, TensorBoard shows the new values, Weights & Biases the
old ones, and trackio both.
"""

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignshared import InputError, atomic
from aligntrain.recipes.schema import Recipe, Track
from aligntrain.runs.folder import METRICS, RunSpec, read_metrics

TENSORBOARD = "tensorboard"
TRACKING = "tracking.json"
PROJECT = "aligntrain"


Log = Callable[[dict[str, float], int], None]
"""Records the numbers of a metrics line, by slash-separated name, of a step."""
Logger = AbstractContextManager[Log]


def check_loggers(recipe: Recipe) -> None:
    """Raise InputError if a logger that `recipe` names is not installed."""
    for name in recipe.log.track:
        if find_spec(name) is None:
            raise InputError(
                f"log.track has {name}, which is not installed; run `pip install {name}`, or take "
                "it out of the list."
            )


def open_loggers(spec: RunSpec, step: int) -> list[Logger]:
    """Return the loggers of a run resuming after `step` steps; for rank 0 alone.

    Raises:
        InputError: one is not installed.
    """
    check_loggers(spec.recipe)
    loggers: dict[Track, Callable[[RunSpec, int], Logger]] = {
        "tensorboard": _tensorboard,
        "wandb": _wandb,
        "trackio": _trackio,
    }
    return [loggers[name](spec, step) for name in dict.fromkeys(spec.recipe.log.track)]


@contextmanager
def _tensorboard(spec: RunSpec, step: int) -> Iterator[Log]:
    """Event files in the run folder."""
    from torch.utils.tensorboard.writer import SummaryWriter

    def log(scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            board.add_scalar(name, value, step)

    folder = os.fspath(spec.folder / TENSORBOARD)
    with closing(SummaryWriter(folder, purge_step=step + 1)) as board:
        yield log


@contextmanager
def _wandb(spec: RunSpec, _step: int) -> Iterator[Log]:
    """A run of the project WANDB_PROJECT, or `aligntrain`."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb: Any = import_module("wandb")
    # Do not upload details of the user's machine or code.
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
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=spec.folder.absolute().name,
        id=_id(spec),
        dir=os.fspath(spec.folder),
        config=spec.recipe.settings,
        mode=os.environ.get("WANDB_MODE", "offline"),
        resume="allow",
        settings=quiet,
    )
    try:
        yield lambda scalars, step: run.log(scalars, step=step)
    finally:
        run.finish()


@contextmanager
def _trackio(spec: RunSpec, _step: int) -> Iterator[Log]:
    """A run of the project TRACKIO_PROJECT, or `aligntrain`."""
    os.environ.setdefault("TRACKIO_DIR", os.fspath((spec.folder / "trackio").absolute()))
    with redirect_stdout(sys.stderr):  # it prints, and stdout is for results
        trackio: Any = import_module("trackio")
        run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{spec.folder.absolute().name}-{_id(spec)}",
            config=spec.recipe.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    try:
        yield lambda scalars, step: run.log(scalars, step=step)
    finally:
        # Not the run's own `finish`, after which trackio would end it once more, loudly, at exit.
        with redirect_stdout(sys.stderr):
            trackio.finish()


def _id(spec: RunSpec) -> str:
    """Return the run's id for its loggers, stable across resumes."""
    path = spec.folder / TRACKING
    if path.is_file():
        return str(json.loads(path.read_bytes())["id"])
    new_id = uuid.uuid4().hex[:12]
    atomic.write(path, json.dumps({"id": new_id}) + "\n")
    return new_id


class Recorder(ExitStack):
    """Writer of metrics to `metrics.jsonl` in `folder` and to `loggers`, until it is closed.

    Removes lines after `step`, written before a run was killed: those steps are repeated.
    """

    def __init__(self, folder: Path, step: int, loggers: Sequence[Logger] = ()) -> None:
        super().__init__()
        path = folder / METRICS
        lines = [line for line in read_metrics(folder) if line["step"] <= step]
        atomic.write(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._logs = [self.enter_context(logger) for logger in loggers]
        self._lines = self.enter_context(path.open("a", encoding="utf-8"))

    def write(self, line: dict[str, Any]) -> None:
        """Record `line`, which has a `step`."""
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        scalars = {name: value for name, value in _scalars(line) if name != "step"}
        for log in self._logs:
            log(scalars, line["step"])


def _scalars(value: Any, name: str = "") -> list[tuple[str, float]]:
    """Return the numbers in `value` by slash-separated name; lists count from 1, like levels."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = ((str(place), item) for place, item in enumerate(value, start=1))
    else:
        return [] if value is None else [(name, float(value))]
    inside = f"{name}/" if name else ""
    return [scalar for key, item in items for scalar in _scalars(item, f"{inside}{key}")]
