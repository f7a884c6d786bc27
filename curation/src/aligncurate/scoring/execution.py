"""Execution of a scoring run: threads of this process or Ray, device, number of workers. Nothing
here changes a row.
"""

import logging
from functools import partial
from typing import Literal

from aligncurate.core.clip import available_gpus, one_torch_thread
from aligncurate.engine import Cluster, ItemFailure, Step, connected, map_on_ray
from aligncurate.scoring.scorer import Preprocessor, Scorer
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.scoring.workers import (
    preprocessed_scorer,
    scored_writer,
    unit_preprocessor,
    unit_scorer,
)
from aligncurate.settings import Execution, OnProgress, Pool
from aligncurate.sources import Source, Unit
from aligncurate.sources.source import Preparing
from aligncurate.threads import available_cores
from aligncurate.units.local import ThreadStep, UnitPipeline, run_in_process
from aligncurate.units.records import UnitFailure
from aligncurate.units.run import Outcomes
from alignshared import AlignError, InputError, Storage

LOCAL_MAX_ROWS = 10_000
"""Maximum pairs for which `--engine auto` avoids Ray, which takes half a minute to start."""

log = logging.getLogger("aligncurate")


def engine_of(execution: Execution, rows: int) -> Literal["local", "ray"]:
    """Choose the engine for a number of rows."""
    if execution.engine != "auto":
        return execution.engine
    workers, gpus = execution.worker_pool, execution.gpu_pool
    many = (gpus is not None and gpus.most > 1) or (workers is not None and workers.is_range)
    return "ray" if execution.ray_address or many or rows > LOCAL_MAX_ROWS else "local"


def device_of(execution: Execution) -> str:
    """Return `cuda` or `cpu`, considering the GPUs of a remote cluster instead of this
    machine's.

    Raises:
        InputError: --gpus exceeds the GPUs available.
    """
    pool = execution.gpu_pool
    if pool is not None and pool.most == 0:
        return "cpu"
    if execution.ray_address:
        if pool is None:
            with connected(execution.ray_address, 0, verbose=execution.verbose) as cluster:
                return "cuda" if cluster.gpus else "cpu"
        return "cuda"  # one that grows may have none yet
    gpus = available_gpus()
    if pool is not None and pool.most > gpus:
        raise InputError(f"--gpus {execution.gpus}: torch finds {gpus} here; give --gpus {gpus}.")
    return "cuda" if gpus else "cpu"


def score_locally(
    spec: ScoringSpec, units: list[Unit], execution: Execution, on_progress: OnProgress
) -> Outcomes:
    """Score `units` on threads of this process; yield each unit's record or failure.

    On CPU each thread decodes and runs the model on one core; with a GPU the threads decode and
    one more feeds the model.
    """
    pool = execution.worker_pool
    threads = pool.most if pool else available_cores()
    preprocess, scorer = Preprocessor(spec), Scorer(spec)
    if spec.device == "cpu":
        steps = [ThreadStep(lambda batch: scorer(preprocess(batch)), threads)]
    else:
        steps = [ThreadStep(preprocess, threads), ThreadStep(scorer, 1)]
    read = partial(spec.source.read, batch_rows=spec.batch_size)
    output = Storage(spec.output)
    pipeline = UnitPipeline(read, steps, scorer.schema, output, execution.unit_timeout)
    with one_torch_thread():
        yield from run_in_process(pipeline, units, on_progress)


def score_on_ray(
    spec: ScoringSpec, units: list[Unit], execution: Execution, on_progress: OnProgress
) -> Outcomes:
    """Score `units` on Ray; yield each unit's record or failure."""
    pool = execution.worker_pool
    local = pool.most if pool else available_cores()
    with connected(execution.ray_address, local, verbose=execution.verbose) as cluster:
        if spec.device == "cpu":
            workers = _cpu_pool(execution, cluster, len(units))
            memory = execution.memory_per_worker
            make = partial(unit_scorer, spec)
            steps = [Step(make, workers.least, most=workers.most, memory_gib=memory)]
        else:
            steps = gpu_steps(spec, _gpu_pool(execution, cluster, len(units)), execution)
        for outcome in map_on_ray(steps, units, execution.unit_timeout):
            if isinstance(outcome, ItemFailure):
                yield UnitFailure(units[outcome.position].index, outcome.reason)
            else:
                on_progress(outcome.rows_in, outcome.reject_count)
                yield outcome


def gpu_steps(spec: ScoringSpec, pool: Pool, execution: Execution) -> list[Step]:
    """Decode in tasks, score in actors holding a GPU or a share of one, write in tasks."""
    scorers = Step(
        partial(preprocessed_scorer, spec),
        actors=pool.least,
        most=pool.most,
        gpus=execution.gpus_per_worker if spec.device == "cuda" else 0.0,
        memory_gib=execution.memory_per_worker,
    )
    return [Step(partial(unit_preprocessor, spec)), scorers, Step(partial(scored_writer, spec))]


def _cpu_pool(execution: Execution, cluster: Cluster, units: int) -> Pool:
    """Actors on CPUs. A cluster of fixed size keeps one CPU for Ray's own reading, without which
    nothing would start.
    """
    pool = execution.worker_pool
    if pool is not None and pool.is_range:  # the cluster may grow
        return Pool(min(pool.least, max(cluster.cpus - 1, 1), units), min(pool.most, units))
    actors = min(pool.most if pool else cluster.cpus, cluster.cpus - 1, units)
    if not execution.ray_address and pool is None:
        actors = min(actors, available_cores())
    return Pool(actors, actors)


def _gpu_pool(execution: Execution, cluster: Cluster, units: int) -> Pool:
    """Actors on the GPUs of --gpus, by default all."""
    pool = execution.gpu_pool or Pool(cluster.gpus, cluster.gpus)
    per_gpu = int(1 / execution.gpus_per_worker + 1e-9)
    least, most = max(pool.least, 1) * per_gpu, max(pool.most, 1) * per_gpu
    return Pool(min(least, units), min(most, units))


def prepare_on_cluster(source: Source, work: Storage, execution: Execution) -> None:
    """Prepare the files of `source` on the cluster at `execution.ray_address`; without a
    cluster, or with a single part, this is left to `plan`.

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
    steps = [Step(lambda: partial(source.prepare, work))]
    with connected(execution.ray_address, 0, verbose=execution.verbose):
        for outcome in map_on_ray(steps, parts, execution.unit_timeout):
            if isinstance(outcome, ItemFailure):
                raise AlignError(
                    f"the input could not be planned: {outcome.reason}; fix that, and run the "
                    "same command to resume."
                )
