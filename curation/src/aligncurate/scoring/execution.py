"""How a run is executed: on which engine, with how many workers, on what device.

Nothing here changes a row, so a run may be gone on with in another way.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from aligncurate.core.clip import available_gpus
from aligncurate.engine import Cluster, ItemFailure, Limits, Step, connected, map_on_ray
from aligncurate.progress import OnProgress
from aligncurate.scoring.spec import Scoring
from aligncurate.scoring.workers import (
    FrameUnit,
    ScoreFramed,
    ScoreUnit,
    WriteScored,
    score_in_process,
)
from aligncurate.sources import Source, Unit
from aligncurate.sources.source import Preparing
from aligncurate.threads import available_cores
from aligncurate.units.local import UNIT_TIMEOUT_S
from aligncurate.units.records import UnitFailure
from aligncurate.units.run import Outcomes
from alignshared import AlignError, InputError, Storage

LOCAL_MAX_ROWS = 10_000
"""Up to this many pairs `--engine auto` stays in this process: Ray takes half a minute to start."""

Engine = Literal["auto", "local", "ray"]


@dataclass(frozen=True, slots=True)
class Pool:
    """Between `least` and `most` workers, as there is work and room."""

    least: int
    most: int

    @property
    def is_range(self) -> bool:
        """Whether the number may change."""
        return self.least < self.most


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is executed; nothing here changes a row.

    `workers` are threads or actors on CPU; None takes what the machine has. `gpus` are those of all
    workers together. Both may be a range, "2..8", on Ray. `gpus_per_worker` may be a fraction:
    several models share a GPU then. `memory_per_worker` (GiB) is what Ray sets aside for each.
    `unit_timeout` is how many seconds a unit may go without progress.
    """

    engine: Engine = "auto"
    workers: int | str | None = None
    gpus: int | str | None = None
    ray_address: str | None = None
    verbose: bool = False
    gpus_per_worker: float = 1.0
    memory_per_worker: float | None = None
    unit_timeout: float = UNIT_TIMEOUT_S

    def __post_init__(self) -> None:
        require_one_of("--engine", self.engine, get_args(Engine))
        workers = pool_of("--workers", self.workers, least=1)
        gpus = pool_of("--gpus", self.gpus, least=0)
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
                f"--gpus-per-worker {self.gpus_per_worker:g} cannot be; give a share of one GPU, "
                "above 0 and up to 1."
            )
        for option, value in (
            ("--memory-per-worker", self.memory_per_worker),
            ("--unit-timeout", self.unit_timeout),
        ):
            if value is not None and value <= 0:
                raise InputError(f"{option} {value:g} cannot be; give more than 0.")

    @property
    def worker_pool(self) -> Pool | None:
        """`workers` as numbers."""
        return pool_of("--workers", self.workers, least=1)

    @property
    def gpu_pool(self) -> Pool | None:
        """`gpus` as numbers."""
        return pool_of("--gpus", self.gpus, least=0)


def pool_of(option: str, value: int | str | None, *, least: int) -> Pool | None:
    """`4` or `2..8` as numbers.

    Raises:
        InputError: it is neither, or below `least`.
    """
    if value is None:
        return None
    low, dots, high = str(value).partition("..")
    try:
        pool = Pool(int(low), int(high if dots else low))
    except ValueError:
        raise InputError(f"{option} {value} is no number; give one, or a range as 2..8.") from None
    if pool.least < least:
        raise InputError(f"{option} {value} cannot be; give {least} or more.")
    if pool.most < pool.least:
        raise InputError(f"{option} {value} goes down; give the smaller number first.")
    return pool


def require_one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a `value` that is not one of `known`.

    Raises:
        InputError: it is not.
    """
    if value not in known:
        raise InputError(f"{option} {value} is not known; give {', '.join(known)}.")


def engine_of(execution: Execution, rows: int) -> Literal["local", "ray"]:
    """The engine for so many rows."""
    if execution.engine != "auto":
        return execution.engine
    workers, gpus = execution.worker_pool, execution.gpu_pool
    many = (gpus is not None and gpus.most > 1) or (workers is not None and workers.is_range)
    return "ray" if execution.ray_address or many or rows > LOCAL_MAX_ROWS else "local"


def device_of(execution: Execution) -> str:
    """`cuda` or `cpu`. With a cluster elsewhere, what it offers counts, not this machine.

    Raises:
        InputError: there are fewer GPUs than were asked for.
    """
    wanted = execution.gpu_pool
    if wanted is not None and wanted.most == 0:
        return "cpu"
    if execution.ray_address:
        if wanted is None:
            with connected(execution.ray_address, 0, verbose=execution.verbose) as cluster:
                return "cuda" if cluster.gpus else "cpu"
        return "cuda"  # one that grows may have none yet
    found = available_gpus()
    if wanted is not None and wanted.most > found:
        raise InputError(f"--gpus {execution.gpus}: torch finds {found} here; give --gpus {found}.")
    return "cuda" if found else "cpu"


def score_locally(
    scoring: Scoring, units: list[Unit], execution: Execution, on_progress: OnProgress
) -> Outcomes:
    """Score `units` on threads of this process."""
    pool = execution.worker_pool
    threads = pool.most if pool else available_cores()
    return score_in_process(scoring, units, threads, on_progress, execution.unit_timeout)


def score_on_ray(
    scoring: Scoring, units: list[Unit], execution: Execution, on_progress: OnProgress
) -> Outcomes:
    """Score `units` on Ray."""
    pool = execution.worker_pool
    local = pool.most if pool else available_cores()
    with connected(execution.ray_address, local, verbose=execution.verbose) as cluster:
        if scoring.device == "cpu":
            workers = _cpu_pool(execution, cluster, len(units))
            memory = execution.memory_per_worker
            steps = [Step(ScoreUnit(scoring), workers.least, most=workers.most, memory_gib=memory)]
        else:
            steps = gpu_steps(scoring, _gpu_pool(execution, cluster, len(units)), execution)
        yield from _outcomes(steps, units, execution, on_progress)


def _outcomes(
    steps: list[Step], units: list[Unit], execution: Execution, on_progress: OnProgress
) -> Iterator[Any]:
    for outcome in map_on_ray(steps, units, Limits(execution.unit_timeout)):
        if isinstance(outcome, ItemFailure):
            yield UnitFailure(units[outcome.position].index, outcome.reason)
        else:
            on_progress(outcome.rows_in, outcome.reject_count)
            yield outcome


def gpu_steps(scoring: Scoring, pool: Pool, execution: Execution) -> list[Step]:
    """Decode in tasks, score in a pool of actors that hold a GPU or a share of one, write in
    tasks.
    """
    share = execution.gpus_per_worker if scoring.device == "cuda" else 0.0
    scorers = Step(
        ScoreFramed(scoring),
        actors=pool.least,
        most=pool.most,
        gpus=share,
        memory_gib=execution.memory_per_worker,
    )
    return [Step(FrameUnit(scoring)), scorers, Step(WriteScored(scoring))]


def _cpu_pool(execution: Execution, cluster: Cluster, units: int) -> Pool:
    """As many as asked for; on a cluster of fixed size one CPU is left for Ray's own reading, or
    nothing would ever start.
    """
    asked = execution.worker_pool
    if asked is not None and asked.is_range:  # the cluster may grow
        return Pool(min(asked.least, max(cluster.cpus - 1, 1), units), min(asked.most, units))
    actors = min(asked.most if asked else cluster.cpus, cluster.cpus - 1, units)
    if not execution.ray_address and asked is None:
        actors = min(actors, available_cores())
    return Pool(actors, actors)


def _gpu_pool(execution: Execution, cluster: Cluster, units: int) -> Pool:
    """Actors on the GPUs that were asked for, or on all there are."""
    asked = execution.gpu_pool or Pool(cluster.gpus, cluster.gpus)
    each = int(1 / execution.gpus_per_worker + 1e-9)
    least, most = max(asked.least, 1) * each, max(asked.most, 1) * each
    return Pool(min(least, units), min(most, units))


log = logging.getLogger("aligncurate")


@dataclass(frozen=True, slots=True)
class _Prepare:
    """Makes the function that does one part, in a worker."""

    source: Preparing
    work: Storage

    def __call__(self) -> Any:
        return lambda part: self.source.prepare(self.work, part)


def prepare_on_cluster(source: Source, work: Storage, execution: Execution) -> None:
    """Have the cluster at `execution.ray_address` do the parts of `source`; without one, or where
    the source has none, nothing: `plan` does them.

    Raises:
        InputError: a part of the input cannot be used.
        AlignError: a part could not be done, or the cluster failed.
    """
    if not execution.ray_address or not isinstance(source, Preparing):
        return
    parts = source.parts(work)
    if len(parts) < 2:
        return
    log.info("planning: the workers look through %s files of %s.", f"{len(parts):,}", source.name)
    steps = [Step(_Prepare(source, work))]
    with connected(execution.ray_address, 0, verbose=execution.verbose):
        for outcome in map_on_ray(steps, parts, Limits(execution.unit_timeout)):
            if isinstance(outcome, ItemFailure):
                raise AlignError(
                    f"the input could not be planned: {outcome.reason}; mend that, and run the "
                    "same command to go on."
                )
