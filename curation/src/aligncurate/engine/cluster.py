"""The Ray cluster: an existing one, or a local one.

A local cluster gets two logical CPUs more than workers: if actors hold all CPUs, none is left
for reading and Ray Data waits forever without a message.
"""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from alignshared import AlignError, InputError
from alignshared.errors import one_line

_SPARE_CPUS = 2
_CONNECT_TIMEOUT_S = 10

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers would rebuild the environment
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_QUIET = {
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # Ray's C++ core logs Ray Data's use of it as an error at every start of an actor.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """CPUs and GPUs of the cluster."""

    cpus: int
    gpus: int


@contextmanager
def connected(address: str | None, local_workers: int, *, verbose: bool) -> Iterator[Cluster]:
    """Connect to the Ray cluster at `address`, or start one on this machine for `local_workers`
    workers.

    An existing connection of the caller is used and left open.

    Raises:
        InputError: there is no cluster at `address`, or it has fewer than two CPUs.
    """
    for name, value in (_ENVIRONMENT if verbose else _ENVIRONMENT | _QUIET).items():
        os.environ.setdefault(name, value)
    import ray

    starts = not ray.is_initialized()
    if starts:
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
        if starts:
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
        # "local", since Ray would otherwise take any cluster that it finds on this machine.
        options |= {"address": "local", "include_dashboard": False}
        options |= {"num_cpus": local_workers + _SPARE_CPUS}
    try:
        if address:
            _require_answer(address)
        with nullcontext() if verbose else _muted_stderr():
            ray.init(**options)
    except Exception as error:  # including plain Exception, after a time-out on a slow machine
        detail = one_line(error, 200)
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
    # Ray's C++ core logs one line on stderr before it reads the environment that silences it.
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _require_answer(address: str) -> None:
    # Ray itself retries for six minutes if nothing listens.
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
