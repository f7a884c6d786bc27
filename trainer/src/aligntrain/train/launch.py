"""Starting the processes of a run on this machine, and ending them together.

Each process is `python -m aligntrain.train RUN`, with the environment that torchrun and the
deepspeed launcher set as well, so the worker knows no difference. Its standard input is a pipe that
nobody writes to: when this process dies, however it dies, the pipe ends and the worker with it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from alignshared import AlignError, InputError

LAUNCHED = "ALIGNTRAIN_LAUNCHED"
"""Set in the environment of workers whose standard input is such a pipe."""

ERRORS = "errors"
LOGS = "logs"

_LOOK_EVERY_S = 0.1
_GRACE_S = 10.0
_AFTERMATH_S = 1.0

Process = subprocess.Popen[bytes]


def launch(
    run: Path, *, resume: bool = False, nproc: int | None = None, profile: int | None = None
) -> None:
    """Work on the run folder `run` with `nproc` processes, by default one per GPU, or one.

    What the first process says goes to this one's output, what others say to `logs/` in the folder.
    With Ctrl-C all end. `profile` is how many steps the first process profiles.

    Raises:
        AlignError: a process failed.
        InputError: there are fewer GPUs than `nproc`.
    """
    count, on_gpu = process_count(nproc)
    errors, logs = run / ERRORS, run / LOGS
    for folder in (errors, logs):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("rank-*"):
            file.unlink()
    command = [sys.executable, "-m", "aligntrain.train", os.fspath(run)]
    if resume:
        command.append("--resume")
    if profile is not None:
        command += ["--profile", str(profile)]
    processes: list[Process] = []
    try:
        port = _free_port()
        for rank in range(count):
            environment = _environment(rank, count, port, on_gpu=on_gpu)
            processes.append(
                _start(command, environment, None if rank == 0 else logs / f"rank-{rank}.log")
            )
        failed = _wait(processes)
    finally:
        _end(processes)
    if failed is not None:
        raise _failure(run, failed, processes[failed].returncode, count)


def process_count(nproc: int | None) -> tuple[int, bool]:
    """How many processes, and whether each has a GPU: `nproc`, or as many as there are GPUs, or 1.

    Raises:
        InputError: there are fewer GPUs than `nproc`, or `nproc` is no number of processes.
    """
    import torch

    gpus = torch.cuda.device_count()
    if nproc is not None and nproc < 1:
        raise InputError(f"--nproc {nproc} cannot be: give 1 or more.")
    if gpus and nproc is not None and nproc > gpus:
        raise InputError(
            f"--nproc {nproc} is more than the {gpus} GPUs here; give {gpus} or less, or set "
            "CUDA_VISIBLE_DEVICES to nothing to work on the CPU."
        )
    return (nproc or gpus or 1), gpus > 0


def _environment(rank: int, count: int, port: int, *, on_gpu: bool) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    defaults = {
        "DS_ACCELERATOR": "cuda" if on_gpu else "cpu",
        "OMP_NUM_THREADS": str(max(1, (cores or 1) // count)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    if sys.platform == "linux" and not on_gpu:
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # a container may not know its own name
    return {
        **defaults,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHED: "1",
    }


def _start(command: Sequence[str], environment: dict[str, str], log: Path | None) -> Process:
    # A session of its own: Ctrl-C reaches this process alone, which ends the others in good order.
    output = None if log is None else log.open("wb")
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        if output is not None:
            output.close()


def _wait(processes: list[Process]) -> int | None:
    """The rank of the process that failed first, None when all have succeeded."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            # Where one fails, others may follow by it: the one that can say why is preferred.
            time.sleep(_AFTERMATH_S)
            return failed[0]
        if all(code == 0 for code in codes):
            return None
        time.sleep(_LOOK_EVERY_S)


def _end(processes: list[Process]) -> None:
    """End what still runs: asked first, killed after a while."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its data workers: a session of its own
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _failure(run: Path, rank: int, code: int, count: int) -> AlignError:
    told = sorted((run / ERRORS).glob("rank-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if told:
        error = json.loads(told[0].read_text(encoding="utf-8"))
        kind = InputError if error["exit_code"] == InputError.exit_code else AlignError
        return kind(error["sentence"])
    how = (
        f"was killed (signal {-code}), as when memory runs out"
        if code < 0
        else f"ended with exit code {code}"
    )
    where = "above" if rank == 0 else f"in {run / LOGS / f'rank-{rank}.log'}"
    return AlignError(
        f"process {rank + 1} of {count} {how}; its last words are {where}; --resume goes on from "
        "the last checkpoint."
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
