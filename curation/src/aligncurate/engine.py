"""Ray Data: the only place that imports ray.

Items (units of work) go through one or more steps. An item is one row of the Ray dataset, so Ray
never cuts it in two, and results come back as they are ready. What Ray is told here, and why:

- A local cluster is started with two logical CPUs more than there are workers: actors that hold
  all CPUs leave none for reading, and Ray Data then waits without a word.
- Steps with different resources are not fused, so decoding stays apart from a GPU; a single step on
  CPU keeps pixels inside the actor.
- An AlignError in a step comes back as a result and is raised here: of what is raised in a worker,
  Ray gives back the text alone when it happens while an actor starts.
- Errors of single rows are handled inside the steps. Ray's own tolerance (`max_errored_blocks`)
  would drop a whole block for one bad row and call it success.
"""

import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from alignshared import AlignError, InputError
from alignshared.storage_options import carrying_storage_options

_SPARE_CPUS = 2
_CONNECT_TIMEOUT_S = 10
_ITEM = "item"

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers would build the environment anew
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_QUIET = {
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # Ray's C++ core reports on its own use by Ray Data as an error, at every start of an actor.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}

Function = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the work: `make()` builds the function that is then called with item after item.

    With `actors`, it is built once in each of so many actors; without, in every task, so it must be
    cheap. `gpus` is per actor.
    """

    make: Callable[[], Function]
    actors: int | None = None
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the cluster offers."""

    cpus: int
    gpus: int


@contextmanager
def connected(address: str | None, local_workers: int, *, verbose: bool) -> Iterator[Cluster]:
    """Connect to the Ray cluster at `address`, or start one on this machine for `local_workers`
    workers.

    A connection that the caller has made before is used and left open.

    Raises:
        InputError: there is no cluster at `address`, or it has fewer than two CPUs.
    """
    for name, value in (_ENVIRONMENT if verbose else _ENVIRONMENT | _QUIET).items():
        os.environ.setdefault(name, value)
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(address, local_workers, verbose=verbose)
    try:
        resources = ray.cluster_resources()
        cpus = int(resources.get("CPU", 0))
        if cpus < _SPARE_CPUS:
            raise InputError(
                f"the Ray cluster has {cpus} CPU; it needs {_SPARE_CPUS}, one for reading beside "
                "the workers."
            )
        yield Cluster(cpus=cpus, gpus=int(resources.get("GPU", 0)))
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str | None, local_workers: int, *, verbose: bool) -> None:
    import ray

    options: dict[str, Any] = {
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "log_to_driver": verbose,
    }
    if address:
        options |= {"address": address}
    else:
        options |= {"num_cpus": local_workers + _SPARE_CPUS, "include_dashboard": False}
    try:
        if address:
            _require_answer(address)
        with nullcontext() if verbose else _muted_stderr():
            ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        detail = " ".join(str(error).split())[:200]
        if not address:
            raise AlignError(
                f"Ray does not start on this machine: {detail}; give --engine local to do without."
            ) from error
        raise InputError(
            f"no Ray cluster answers at {address}: {detail}; start one with `ray start --head`, or "
            "leave --ray-address out."
        ) from error


@contextmanager
def _muted_stderr() -> Iterator[None]:
    # Told by the environment to be quiet, Ray's C++ core says so on stderr before it is.
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _require_answer(address: str) -> None:
    # Where nobody listens, Ray itself tries for six minutes.
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()


def map_on_ray(steps: Sequence[Step], items: Sequence[Any]) -> Iterator[Any]:
    """Put `items` through `steps` on the connected cluster; results as they are ready, in any
    order.

    Raises:
        AlignError: a step raised it, or workers died more often than Ray retries.
    """
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.from_items(
        [{_ITEM: pickle.dumps(item)} for item in items], override_num_blocks=len(items)
    )
    for step in steps:
        dataset = dataset.map_batches(**_map_options(step))
    try:
        for row in dataset.iter_rows():
            result = pickle.loads(row[_ITEM])
            if isinstance(result, AlignError):
                raise result
            yield result
    except RayError as error:
        raise _explained(error) from error


def _map_options(step: Step) -> dict[str, Any]:
    import ray

    common = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": 1}
    make = carrying_storage_options(step.make)
    if step.actors is None:
        return {"fn": partial(_call_in_task, make), **common}
    return {
        "fn": _actor(make),
        "compute": ray.data.ActorPoolStrategy(size=step.actors),
        "num_gpus": step.gpus or None,
        **common,
    }


def _actor(make: Callable[[], Function]) -> type:
    # The class carries `make` itself: a constructor argument may be gone from the object store by
    # the time that an actor is restarted.
    class Worker:
        """Holds what a step's `make` built, a model for instance."""

        def __init__(self) -> None:
            self._function = _made(make)

        def __call__(self, batch: pa.Table) -> pa.Table:
            return _call(self._function, batch)

    return Worker


def _call_in_task(make: Callable[[], Function], batch: pa.Table) -> pa.Table:
    return _call(_made(make), batch)


def _made(make: Callable[[], Function]) -> Function:
    try:
        return make()
    except AlignError as error:
        failure = error
        return lambda _: failure


def _call(function: Function, batch: pa.Table) -> pa.Table:
    results = [_result(function, pickle.loads(item.as_py())) for item in batch[_ITEM]]
    return pa.table({_ITEM: pa.array([pickle.dumps(r) for r in results], pa.large_binary())})


def _result(function: Function, item: Any) -> Any:
    if isinstance(item, AlignError):  # of the step before
        return item
    try:
        return function(item)
    except AlignError as error:
        return error


def _explained(error: Exception) -> AlignError:
    detail = str(error).strip().splitlines()
    return AlignError(
        f"the run on Ray failed: {detail[-1] if detail else type(error).__name__}; finished shards "
        "are kept, run the same command to go on (--verbose shows Ray's log)."
    )
