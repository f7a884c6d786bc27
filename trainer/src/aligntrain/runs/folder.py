"""What a run folder says of its run.

run.json       phase, data and start with their digests, versions
recipe.yaml    the resolved recipe, every key written out
metrics.jsonl, tensorboard/, checkpoints/, logs/, errors/
export/        the trained model
finished.json  how it ended; written last
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
"""The folder of the trained model, in transformers' form."""
ADAPTER = "adapter.safetensors"
"""Its small adapter file, in that folder."""

_PACKAGES = ("aligntrain", "torch", "transformers", "deepspeed")


@dataclass(frozen=True, slots=True)
class Start:
    """What fine-tuning goes on from: the adapter file at `adapter`, whose SHA-256 is `sha256`; or
    the whole model in the folder `model`, of which that is a part.
    """

    adapter: str
    sha256: str
    model: str | None = None

    @classmethod
    def of(cls, adapter: Path, model: Path | None = None) -> "Start":
        """That of these files, with the digest taken."""
        with adapter.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        where = None if model is None else os.fspath(model.absolute())
        return cls(os.fspath(adapter.absolute()), digest, where)


@dataclass(frozen=True, slots=True)
class Job:
    """A run, in the folder `folder`: `recipe` on the dataset `data`, whose manifest has the SHA-256
    `data_sha256`.
    """

    folder: Path
    recipe: Recipe
    data: str
    data_sha256: str
    start: Start | None = None


def write_job(job: Job) -> None:
    """Make the run folder of `job`, or give it new free keys."""
    job.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "phase": job.recipe.phase,
        "recipe": job.recipe.name,
        "data": job.data,
        "data_sha256": job.data_sha256,
        "start": None if job.start is None else asdict(job.start),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in _PACKAGES},
    }
    atomic.write(job.folder / RECIPE, dump(job.recipe))
    atomic.write(job.folder / RUN, _json(content))


def is_job(folder: Path) -> bool:
    """Whether `folder` is a run folder."""
    return (folder / RUN).is_file()


def read_job(folder: Path) -> Job:
    """The run in the folder `folder`.

    Raises:
        InputError: it is no run folder, or a damaged one.
    """
    if not is_job(folder):
        raise InputError(f"{folder} is no run folder: it has no {RUN}; give one of aligntrain run.")
    try:
        content = json.loads((folder / RUN).read_bytes())
        recipe = loads((folder / RECIPE).read_text(encoding="utf-8"), os.fspath(folder / RECIPE))
        start = content["start"]
        return Job(
            folder,
            recipe,
            content["data"],
            content["data_sha256"],
            None if start is None else Start(**start),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is a damaged run folder ({error}); begin again with another --output."
        ) from error


def versions_of(folder: Path) -> dict[str, str]:
    """The packages that the run in `folder` was begun with; none where that cannot be read."""
    try:
        return dict(json.loads((folder / RUN).read_bytes())["versions"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def finish(folder: Path, ending: dict[str, Any]) -> None:
    """Write down how the run in `folder` ended, which makes it a finished one."""
    atomic.write(folder / FINISHED, _json(ending))


def ending_of(folder: Path) -> dict[str, Any] | None:
    """How the run in `folder` ended, None if it is not finished."""
    path = folder / FINISHED
    return json.loads(path.read_bytes()) if path.is_file() else None


def levels_wanted(recipe: Recipe) -> int | None:
    """How many levels the dataset must be sorted into, None where it need not be."""
    needed = recipe.phase == "pretrain" and recipe.model.mixing != "none"
    return recipe.model.levels if needed else None


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
