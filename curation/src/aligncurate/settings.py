"""Settings shared by stages, and their types. Imports little, for a fast `--help`.

A field `Annotated[TYPE, HELP]` is an option; a third part gives the command-line type where
Python accepts more.
"""

import inspect
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from functools import wraps
from typing import Annotated, Any, ClassVar, Literal, ParamSpec, Protocol, TypeVar, get_args

from alignshared.errors import InputError

Location = str | os.PathLike[str]
"""A path or a URI."""

Decode = Literal["exact", "fast"]
"""Decode all pixels of an image or, for JPEGs much larger than the models' input, decode at 1/2,
1/4 or 1/8 scale.
"""

Engine = Literal["auto", "local", "ray"]

LongCaptions = Literal["truncate", "mean"]
"""Embedding of a caption longer than the text tower's context: its beginning, or the normalised
mean of the unit embeddings of its windows.
"""

Over = Literal["images", "captions"]

Precision = Literal["fp32", "bf16", "fp16"]

View = Literal["crop", "pad"]
"""Framing of images that are not square, overriding the model's own.

`crop` resizes the shorter side and crops the centre, as CLIPs are trained. `pad` resizes the
longer side and fills the square with the mean colour of the model's normalisation, so that the
whole image is visible. Either replaces the squashing of SigLIP-type models, which distorts the
aspect ratio.
"""


class OnProgress(Protocol):
    """Progress callback: numbers of pairs newly done and, of those, rejected."""

    def __call__(self, done: int, rejects: int = 0) -> None: ...


def silent(done: int, rejects: int = 0) -> None:
    """Default OnProgress of library calls; shows nothing."""


ShowProgress = Callable[[str, int, int], AbstractContextManager[OnProgress]]
"""From (task, total pairs, pairs done by an earlier run) to the `OnProgress` to call as pairs are
done.
"""

UNIT_TIMEOUT_S = 600.0
"""Seconds without progress after which a unit counts as failed."""


def require_at_least(least: float, **options: float | None) -> None:
    """Refuse options below `least`; None counts as unset.

    Raises:
        InputError: an option is too small; the message names the first.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise InputError(f"{option_of(name)} must be at least {least} (got {value}).")


def require_one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a `value` not in `known`.

    Raises:
        InputError: the value is unknown.
    """
    if value not in known:
        choices = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        raise InputError(f"{option} must be {choices} (got {value}).")


def option_of(name: str) -> str:
    """Option name of a setting: `batch_size` is `--batch-size`."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class Pool:
    """Between `least` and `most` workers, depending on work and resources."""

    least: int
    most: int

    @property
    def is_range(self) -> bool:
        """Whether the number may vary."""
        return self.least < self.most


@dataclass(frozen=True, slots=True)
class Execution:
    """Execution of a run; nothing here changes a row, so a run may be resumed with other values."""

    engine: Annotated[Engine, "auto: this process for small inputs on one device, else Ray."] = (
        "auto"
    )
    workers: Annotated[
        int | str | None, "Threads or, on Ray, actors; a range, 2..8; else one per core.", str
    ] = None
    gpus: Annotated[
        int | str | None, "GPUs to use in all, or a range; by default all, 0 for none.", str
    ] = None
    ray_address: Annotated[
        str | None, "A running Ray cluster, or auto; by default a local one."
    ] = None
    verbose: Annotated[bool, "Show Ray's own log."] = False
    gpus_per_worker: Annotated[float, "Share of a GPU for each model: 0.5 puts two on one."] = 1.0
    memory_per_worker: Annotated[float | None, "GiB that Ray sets aside for each model."] = None
    unit_timeout: Annotated[float, "Seconds without progress after which a unit fails."] = (
        UNIT_TIMEOUT_S
    )

    def __post_init__(self) -> None:
        require_one_of("--engine", self.engine, get_args(Engine))
        workers, gpus = self.worker_pool, self.gpu_pool
        if self.ray_address and self.engine == "local":
            raise InputError("--ray-address goes with --engine ray; leave one of them out.")
        if self.engine == "local" and gpus is not None and gpus.most > 1:
            raise InputError(
                f"--engine local uses one GPU, not {self.gpus}; give --engine ray, or --gpus 1."
            )
        if self.engine == "local" and workers is not None and workers.is_range:
            raise InputError(f"--workers {self.workers} is for --engine ray; give one number.")
        if not 0 < self.gpus_per_worker <= 1:
            raise InputError(
                "--gpus-per-worker must be above 0 and at most 1, a share of one GPU "
                f"(got {self.gpus_per_worker:g})."
            )
        for name in ("memory_per_worker", "unit_timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{option_of(name)} must be above 0 (got {value:g}).")

    @property
    def worker_pool(self) -> Pool | None:
        """Parsed `workers`."""
        return pool_of("--workers", self.workers, least=1)

    @property
    def gpu_pool(self) -> Pool | None:
        """Parsed `gpus`."""
        return pool_of("--gpus", self.gpus, least=0)


def pool_of(option: str, value: int | str | None, *, least: int) -> Pool | None:
    """Parse `4` or `2..8`.

    Raises:
        InputError: the text is neither, or below `least`.
    """
    if value is None:
        return None
    low, dots, high = str(value).partition("..")
    try:
        pool = Pool(int(low), int(high if dots else low))
    except ValueError:
        raise InputError(f"{option} must be a number, or a range as 2..8 (got {value}).") from None
    if pool.least < least:
        raise InputError(f"{option} must be at least {least} (got {value}).")
    if pool.most < pool.least:
        raise InputError(f"{option} must name the smaller number first (got {value}).")
    return pool


class DatasetSettings(Protocol):
    """Settings of a stage that reads a dataset, by default the newest of `stages` in data/."""

    stages: ClassVar[tuple[str, ...]]

    @property
    def input(self) -> Location | None: ...


class CopySettings(DatasetSettings, Protocol):
    """Settings of a stage that writes to a folder, by default beside its input."""

    @property
    def output(self) -> Location | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Conditions of a filter; a pair must meet all that are set.

    Bounds are inclusive, and score bounds are rounded to float32, like scores. `levels` is `3-8`
    or `1,5-8`, `language` is `COLUMN=en,de`, `where` is SQL. `top` is a share: the greatest
    ceil(top * n) of the input's n finite scores, plus ties with the least of them. Captions are
    measured in characters (Unicode code points), `min_size` is the shorter side in pixels,
    `max_aspect` the longer side over the shorter.
    """

    min_score: Annotated[float | None, "Least score to keep."] = None
    max_score: Annotated[float | None, "Greatest score to keep."] = None
    levels: Annotated[str | None, "Levels to keep, such as 3-8 or 1,5-8."] = None
    top: Annotated[
        float | None, "Share of all pairs to keep, best scores first; equal scores too."
    ] = None
    min_size: Annotated[int | None, "Least length of an image's shorter side, in pixels."] = None
    max_aspect: Annotated[
        float | None, "Greatest ratio of an image's longer to its shorter side."
    ] = None
    min_caption: Annotated[int | None, "Least length of a caption, in characters."] = None
    max_caption: Annotated[int | None, "Greatest length of a caption, in characters."] = None
    language: Annotated[str | None, "COLUMN=en,de: values of that column to keep."] = None
    where: Annotated[str | None, "SQL condition (DuckDB) on any columns of the dataset."] = None

    def __post_init__(self) -> None:
        if not self.given():
            options = ", ".join(map(option_of, asdict(self)))
            raise InputError(f"no condition was given; give at least one of {options}.")
        for name, test, requirement in (
            ("min_score", math.isfinite, "a finite number"),
            ("max_score", math.isfinite, "a finite number"),
            ("top", lambda value: 0 < value <= 1, "above 0 and at most 1"),
            ("max_aspect", lambda value: value >= 1, "at least 1"),
        ):
            value = getattr(self, name)
            if value is not None and not test(value):
                raise InputError(f"{option_of(name)} must be {requirement} (got {value}).")
        require_at_least(
            0, min_size=self.min_size, min_caption=self.min_caption, max_caption=self.max_caption
        )
        for what in ("score", "caption"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least is not None and most is not None and least > most:
                raise InputError(
                    f"--min-{what} {least} is above --max-{what} {most}, so no pair would be kept."
                )

    def given(self) -> dict[str, Any]:
        """Conditions that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def arguments_of(settings: Any, **others: Any) -> dict[str, Any]:
    """Fields of `settings`, some with `others` values, as keyword arguments of its function."""
    return {field.name: getattr(settings, field.name) for field in fields(settings)} | others


_Arguments = ParamSpec("_Arguments")
_Settings = TypeVar("_Settings")
_Result = TypeVar("_Result")


def called_with(
    settings: Callable[_Arguments, _Settings],
) -> Callable[[Callable[[_Settings], _Result]], Callable[_Arguments, _Result]]:
    """Decorator: turn a function of a `settings` object into one of its fields."""

    def decorate(function: Callable[[_Settings], _Result]) -> Callable[_Arguments, _Result]:
        @wraps(function)
        def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            return function(settings(*args, **kwargs))

        vars(call)["__signature__"] = inspect.signature(settings)
        return call

    return decorate
