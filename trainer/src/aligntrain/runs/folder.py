"""Run folder: a run's settings, metrics and result.

run.json       phase, data and start with their digests, versions
recipe.yaml    the resolved recipe, every key written out
metrics.jsonl, tensorboard/, checkpoints/, logs/, errors/
export/        the trained model
finished.json  the result; written last
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignshared import InputError, atomic
from aligntrain.recipes import Recipe, dump, loads

RUN = "run.json"
RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
FINISHED = "finished.json"
EXPORT = "export"
"""Folder of the trained model, in transformers' form."""
ADAPTER = "adapter.safetensors"
"""Small adapter file in that folder."""
LORA = "lora"
"""Folder of LoRA in that folder, in peft's own form."""
GATE = "gate"
"""Default folder of the report on the gate, in the model's."""
GATE_SUMMARY = "gate.json"
"""All numbers of that report."""

PLAIN_LOSS = "validation_loss_plain"
"""Name, in metrics and result, of the held-out loss without alignment vectors."""

_LOSSES = ("loss", "validation_loss", PLAIN_LOSS)
_PACKAGES = ("aligntrain", "torch", "transformers", "deepspeed")


@dataclass(frozen=True, slots=True)
class Start:
    """Start of fine-tuning: the adapter file `adapter` with its SHA-256, or the whole model in
    the folder `model`, which contains the adapter.
    """

    adapter: str
    sha256: str
    model: str | None = None

    @classmethod
    def of(cls, adapter: Path, model: Path | None = None) -> "Start":
        """Return the start at these files, with the adapter's digest."""
        with adapter.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        where = None if model is None else os.fspath(model.absolute())
        return cls(os.fspath(adapter.absolute()), digest, where)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Run in `folder`: `recipe` on the dataset `data`, whose manifest's SHA-256 follows."""

    folder: Path
    recipe: Recipe
    data: str
    data_sha256: str
    start: Start | None = None


def write_run(spec: RunSpec) -> None:
    """Write the run folder of `spec`, or the changed keys of one that exists."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "phase": spec.recipe.phase,
        "recipe": spec.recipe.name,
        "data": spec.data,
        "data_sha256": spec.data_sha256,
        "start": None if spec.start is None else asdict(spec.start),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in _PACKAGES},
    }
    atomic.write(spec.folder / RECIPE, dump(spec.recipe))
    atomic.write(spec.folder / RUN, _json(content))


def is_run(folder: Path) -> bool:
    """Return whether `folder` is a run folder."""
    return (folder / RUN).is_file()


def read_run(folder: Path) -> RunSpec:
    """Return the run in the folder `folder`.

    Raises:
        InputError: it is not a run folder, or a damaged one.
    """
    if not is_run(folder):
        raise InputError(
            f"{folder} is not a run folder: it has no {RUN}; give one that `aligntrain run` made."
        )
    try:
        content = json.loads((folder / RUN).read_bytes())
        recipe = loads((folder / RECIPE).read_text(encoding="utf-8"), os.fspath(folder / RECIPE))
        start = None if content["start"] is None else Start(**content["start"])
        return RunSpec(folder, recipe, content["data"], content["data_sha256"], start)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is a damaged run folder ({error}); begin again with another --output."
        ) from error


def versions_of(folder: Path) -> dict[str, str]:
    """Return the package versions of the run, or {} if unreadable."""
    try:
        return dict(json.loads((folder / RUN).read_bytes())["versions"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def finish(folder: Path, result: dict[str, Any]) -> None:
    """Record the result of the run in `folder`, which marks it as finished."""
    atomic.write(folder / FINISHED, _json(result))


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the result of the run in `folder`, or None if unfinished."""
    path = folder / FINISHED
    return json.loads(path.read_bytes()) if path.is_file() else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, oldest first, without a truncated last line."""
    path = folder / METRICS
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def newest_metrics(folder: Path) -> dict[str, Any]:
    """Return the newest losses of a run by their names in its metrics, and its `steps` so far."""
    newest: dict[str, Any] = {}
    for line in read_metrics(folder):
        newest |= {key: line[key] for key in _LOSSES if key in line}
        newest["steps"] = line["step"]
    return newest


def required_levels(recipe: Recipe) -> int | None:
    """Return the required number of levels of the dataset, or None if it needs none."""
    needed = recipe.phase == "pretrain" and recipe.model.mixing != "none"
    return recipe.model.levels if needed else None


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
