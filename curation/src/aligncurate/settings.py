"""Settings of a scoring run, defined once as keyword arguments of `score` and options of its
command. Imports little, for a fast `--help`.

A field `Annotated[TYPE, HELP]` is an option; a third part gives the command-line type where
Python accepts more.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Literal, ParamSpec, TypeVar, get_args

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

Precision = Literal["fp32", "bf16", "fp16"]

View = Literal["crop", "pad"]
"""Framing of images that are not square, overriding the model's own.

`crop` resizes the shorter side and crops the centre, as CLIPs are trained. `pad` resizes the
longer side and fills the square with the mean colour of the model's normalisation, so that the
whole image is visible. Either replaces the squashing of SigLIP-type models, which distorts the
aspect ratio.
"""

ShowProgress = Callable[[str, int, int], AbstractContextManager[Callable[..., None]]]
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


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """Arguments of `score` and options of `aligncurate score`."""

    input: Annotated[
        Location,
        "demo, laion-cc-sbu, a LLaVA .json or .jsonl, Parquet or WebDataset tars (file, folder, "
        "glob), or a folder of images; on disk, s3://, gs://, hf://datasets/.",
        str,
    ]
    output: Annotated[
        Location | None, "Folder to write; by default data/<name>/score.", str | None
    ] = None
    image_root: Annotated[
        str | None, "Folder that paths of images start from; by default the input's own."
    ] = None
    model: Annotated[
        str | Sequence[str] | None,
        "open_clip architecture, hf-hub: name, folder, or demo. By default demo for the demo "
        "pairs, else ViT-L-14-336. Given several times, as MODEL or NAME=MODEL, each writes "
        "score_NAME.",
        list[str] | None,
    ] = None
    weights: Annotated[
        str | Sequence[str] | None,
        "Pretrained tag or weights file of an architecture; by default openai. With several "
        "models NAME=WEIGHTS.",
        list[str] | None,
    ] = None
    main: Annotated[
        str | None, "Which of several models gives score and embeddings; by default the first."
    ] = None
    view: Annotated[
        View | None,
        "Crop an image's centre or pad it to a square; by default the model's own way.",
    ] = None
    long_captions: Annotated[
        LongCaptions, "Cut captions that are too long, or take the mean of their windows."
    ] = "truncate"
    decode: Annotated[
        Decode, "fast: decode JPEGs much larger than the model's input at reduced scale."
    ] = "exact"
    precision: Annotated[
        Precision | Literal["auto"],
        "auto: fp32 on CPU, bf16 on GPU.",
        Literal["auto", "fp32", "bf16", "fp16"],
    ] = "auto"
    batch_size: Annotated[
        int | None, "Pairs per forward pass; by default 64 on CPU, 256 on GPU."
    ] = None
    shard_rows: Annotated[
        int | None, "Pairs per shard; by default 256 to 1,024, by their number."
    ] = None
    embeddings: Annotated[bool, "Also write both embeddings, as float16 unit vectors."] = False
    overwrite: Annotated[bool, "Replace the dataset or unfinished run in the output."] = False
    retry_failed: Annotated[bool, "Try units again that failed in earlier runs."] = False
    skip_failed: Annotated[bool, "Leave failed units out: their rows become rejects."] = False
    execution: Execution = Execution()
    show_progress: ShowProgress | None = None

    def __post_init__(self) -> None:
        require_at_least(1, batch_size=self.batch_size, shard_rows=self.shard_rows)
        require_one_of("--view", self.view or "crop", get_args(View))
        require_one_of("--long-captions", self.long_captions, get_args(LongCaptions))
        require_one_of("--decode", self.decode, get_args(Decode))
        require_one_of("--precision", self.precision, ("auto", *get_args(Precision)))


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
