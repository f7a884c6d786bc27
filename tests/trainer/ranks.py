"""Ranks of a run as forked processes; those of a launcher import torch for 10 s each."""

import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.forking import forkserver

LIMIT_S = 400


def start_ranks(folder: Path, ranks: int = 1, *, resume: bool = False) -> list[BaseProcess]:
    """Processes that train the run `folder` together."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    together = {
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    context = forkserver()
    processes: list[BaseProcess] = []
    for rank in map(str, range(ranks)):
        environment = {**together, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(context.Process(target=_rank, args=(folder, resume, environment)))
        processes[-1].start()
    return processes


def _rank(folder: Path, resume: bool, environment: dict[str, str]) -> None:
    from aligntrain.train import main as worker

    os.environ.update(environment)
    sys.exit(worker.main([str(folder), *(["--resume"] if resume else [])]))


def launch(folder: Path, *, resume: bool = False, nproc: int | None = None, **_: Any) -> None:
    """Stands for `aligntrain.train.launch.launch`."""
    processes = start_ranks(folder, nproc or 1, resume=resume)
    try:
        for process in processes:
            process.join(LIMIT_S)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
