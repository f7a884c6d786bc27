"""One process of a run: `python -m aligntrain.train RUN_FOLDER [--resume] [--profile N]`.

`aligntrain run` starts it, and so can torchrun and the deepspeed launcher on a folder that
`aligntrain.train.run.prepare` made:

    torchrun --nproc-per-node 8 -m aligntrain.train runs/vicuna-7b-pretrain
    deepspeed --hostfile hosts --module aligntrain.train runs/vicuna-7b-pretrain

Who it is among the others it reads from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT,
which all three set; alone it is the only one.
"""

import argparse
import json
import logging
import os
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from alignshared import AlignError, InputError, atomic
from aligntrain.runs.folder import Job, finish, read_job
from aligntrain.train import checkpoint as checkpoints
from aligntrain.train.launch import ERRORS, LAUNCHED

log = logging.getLogger("aligntrain")
console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Work as the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m aligntrain.train")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--profile", type=int, metavar="N", help="profile N steps on rank 0")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="of the deepspeed launcher")
    options = parser.parse_args(arguments)
    launched = _become_one_of_several(options.local_rank)
    try:
        work(options.run, resume=options.resume, profile=options.profile)
    except AlignError as error:
        problem = error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        traceback.print_exc()
        problem = AlignError(_OUT_OF_MEMORY)
    else:
        return 0
    if launched:
        _tell_launcher(options.run, problem)
    else:
        console.print(f"error: {problem}")
    return problem.exit_code


def work(run: Path, *, resume: bool, profile: int | None = None) -> None:
    """Train as the run folder `run` says, from the start or from its newest checkpoint.

    `profile` is how many steps rank 0 is to profile.

    Raises:
        AlignError: the run cannot start or go on; the message says why.
    """
    job = read_job(run)
    found = _where_to_begin(run, resume)
    began = time.monotonic()
    _quieten()

    from aligntrain.train import deepspeed_engine as zero

    zero.choose_accelerator()
    from aligntrain.inference.load import Base
    from aligntrain.train.save import export, export_lora
    from aligntrain.train.setup import build_parts, device_of_rank, open_data

    zero.start_process(device_of_rank())
    model, processor = build_parts(job)
    data = open_data(job, processor)
    start = 0
    if found is not None:
        checkpoints.check_fits(found, checkpoints.model_identity(model.config), job.recipe)
        start = data.order.steps_to(data.order.restore(found.meta["position"]))
        checkpoints.load_weights(found, model)
    micro_batches = data.share.micro_batches(job.recipe.batch.global_size)
    engine = zero.build_engine(model, job.recipe, micro_batches=micro_batches)
    if found is not None:
        checkpoints.load_state(found, zero.MasterState(engine))
    if job.recipe.compile:
        from aligntrain.train.setup import compile_layers

        compile_layers(engine.module)
    ending = _train(job, engine, data, start, profile)
    if job.recipe.lora is None:
        export(engine.module, processor, run)
    else:
        export_lora(engine.module, processor, run, Base.of(job))
    if data.share.rank == 0:
        finish(run, {**ending, "seconds": time.monotonic() - began})
    # Not after an error: the others may be waiting for this rank, and it would wait for them.
    zero.stop_process()


def _where_to_begin(run: Path, resume: bool) -> checkpoints.Checkpoint | None:
    found = checkpoints.newest_checkpoint(run)
    if resume:
        return found
    if found is not None:
        raise InputError(
            f"{run} has a checkpoint of step {found.step}; give --resume to go on from it, or "
            "another --output to begin anew."
        )
    return None


def _train(job: Job, engine: Any, data: Any, start: int, profile: int | None) -> dict[str, Any]:
    """Make the steps after `start`; how the run ended."""
    from aligntrain.progress import Display
    from aligntrain.train.loggers import Recorder, open_trackers
    from aligntrain.train.metrics import sentence
    from aligntrain.train.trainer import Loop

    first = data.share.rank == 0
    recorder = Recorder(job.folder, start, open_trackers(job, start)) if first else None
    loop = Loop(engine, data, job.recipe, folder=job.folder, recorder=recorder)
    display = Display(console if first else None, job.recipe.phase, loop.total, start)
    try:
        with display.shown():
            loop.run(start, display, profile if first else None)
    finally:
        if recorder is not None:
            recorder.close()
    ending = loop.ending()
    if ending["throughput"] is not None:
        log.info("%s.", sentence(ending["throughput"]))
    return ending


_OUT_OF_MEMORY = (
    "memory ran out; lower batch.micro_size, set gradient_checkpointing, or raise zero_stage "
    "(`aligntrain plan` says what a recipe needs)."
)


def _become_one_of_several(local_rank: int | None) -> bool:
    """Complete the environment; whether `launch` started this process, with which it then ends."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    launched = os.environ.pop(LAUNCHED, None) is not None
    if launched:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    return launched


def _end_with_launcher() -> None:
    # Not by sys.stdin, whose lock Python could not take at its end.
    while os.read(0, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # with the data workers
    os._exit(1)


def _quieten() -> None:
    """Of the log only this package's reaches the terminal, and only rank 0's."""
    first = os.environ["RANK"] == "0"
    log.setLevel(logging.INFO if first else logging.WARNING)
    log.handlers = [_Log()]
    log.propagate = False
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        console.print(prefix + self.format(record))


def _tell_launcher(run: Path, error: AlignError) -> None:
    rank = os.environ["RANK"]
    told = {"sentence": str(error), "exit_code": error.exit_code}
    atomic.write(run / ERRORS / f"rank-{rank}.json", json.dumps(told))
