"""Start the processes of a run on this machine: a single one in process, several through torch.

The elastic agent of `torch.distributed.run` starts and watches several processes, like `torchrun
--standalone -m aligntrain.train RUN` but without restarts: resume a run with `--resume`.
"""

import atexit
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from alignshared import AlignError, InputError
from aligntrain.train.main import LAUNCHER, LOGS, set_environment, work

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import LogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

ERRORS = "errors"

_GRACE_S = 10
"""Seconds between a signal to the processes and killing them."""


def launch(
    run: Path,
    *,
    resume: bool = False,
    nproc: int | None = None,
    profile: int | None = None,
    isolated: bool = False,
) -> None:
    """Train the run folder `run` with `nproc` processes, by default one per GPU, or one.

    A single process is this one, unless `isolated` starts a child, whose memory is freed and whose
    death this process survives. Of several, the first writes to this process's output, the others
    to `logs/` in the folder. The first profiles `profile` steps.

    Raises:
        AlignError: a process failed.
        InputError: there are fewer GPUs than `nproc`.
    """
    count = process_count(nproc)
    environment = dict(os.environ)
    try:
        if count == 1 and not isolated:
            _train_here(run, resume, profile)
        else:
            arguments = [os.fspath(run), *(["--resume"] if resume else [])]
            arguments += [] if profile is None else ["--profile", str(profile)]
            _start_processes(run, arguments, count)
    finally:
        os.environ.clear()
        os.environ.update(environment)


def process_count(nproc: int | None) -> int:
    """Return the number of processes: `nproc`, or one per GPU, or 1 without GPUs.

    Raises:
        InputError: there are fewer GPUs than `nproc`, or `nproc` is less than 1.
    """
    import torch

    gpus = torch.cuda.device_count()
    if nproc is None:
        return gpus or 1
    if nproc < 1:
        raise InputError(f"--nproc must be at least 1 (got {nproc}).")
    if 0 < gpus < nproc:
        raise InputError(
            f"--nproc {nproc} is more than the {gpus} GPUs here; give {gpus} or less, or set "
            "CUDA_VISIBLE_DEVICES to nothing to work on the CPU."
        )
    return nproc


def _train_here(run: Path, resume: bool, profile: int | None) -> None:
    from aligntrain.train.deepspeed_engine import stop_process

    set_environment()
    # DeepSpeed cannot join a second process group, so a second run here shares the first one's.
    atexit.register(stop_process)
    try:
        work(run, resume=resume, profile=profile)
    except (AlignError, OSError):
        raise
    except Exception as error:
        traceback.print_exc()
        raise AlignError(
            "the run failed; its traceback is above; --resume continues from the last checkpoint."
        ) from error


def _start_processes(run: Path, arguments: list[str], count: int) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for folder in (run / ERRORS, run / LOGS):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("rank-*"):
            file.unlink()
    # It warns of every signal it sends; the error is reported once, below.
    agent_log = logging.getLogger("torch.distributed.elastic")
    agent_log.addHandler(logging.NullHandler())
    agent_log.propagate = False
    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=run.name,
        role="aligntrain",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # a container may not know its own name
        max_restarts=0,
        logs_specs=_logs(run),
        shutdown_timeout=_GRACE_S,
    )
    signals = [getattr(signal, name) for name in config.signals_to_handle.split(",")]
    handlers = {number: signal.getsignal(number) for number in signals}
    received = None
    try:
        elastic_launch(config, sys.executable)("-m", "aligntrain.train", *arguments)
    except ChildFailedError as error:
        raise _failure(run, error, count) from error
    except SignalException as error:
        received = error.sigval
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received is not None:
        # As if the agent had not caught it: Ctrl-C is a KeyboardInterrupt, SIGTERM the end.
        signal.raise_signal(received)


def _logs(run: Path) -> "LogsSpecs":
    from torch.distributed.elastic.multiprocessing import LogsDest
    from torch.distributed.elastic.multiprocessing import LogsSpecs as Specs

    class Logs(Specs):
        """Output is left to the ranks; their errors go to `errors/rank-N.json`."""

        @property
        def root_log_dir(self) -> str:
            return os.fspath(run / LOGS)

        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            errors = {rank: os.fspath(run / ERRORS / f"rank-{rank}.json") for rank in envs}
            for rank, environment in envs.items():
                environment["TORCHELASTIC_ERROR_FILE"] = errors[rank]
            here = dict.fromkeys(envs, "")
            return LogsDest(here, here, {}, {}, errors, "", "")

    return Logs()


def _failure(run: Path, error: "ChildFailedError", count: int) -> AlignError:
    """Return the error to raise: the first rank's recorded message, or how it ended."""
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    for _, failure in failures:
        if "exit_code" in failure.error_file_data:
            sentence, code = failure.message, failure.error_file_data["exit_code"]
            return (InputError if code == InputError.exit_code else AlignError)(sentence)
    rank, failure = failures[0]
    where = "above" if rank == 0 else f"in {run / LOGS / f'rank-{rank}.log'} or above"
    end = f"ended with exit code {failure.exitcode}"
    if failure.exitcode < 0:
        end = f"was killed (signal {-failure.exitcode}), as when memory runs out"
    return AlignError(
        f"process {rank + 1} of {count} {end}; its last words are {where}; --resume continues from "
        "the last checkpoint."
    )
