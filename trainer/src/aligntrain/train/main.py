"""One process of a run: `python -m aligntrain.train RUN_FOLDER [--resume] [--profile N]`.

`aligntrain run` starts it, and so can torchrun and the deepspeed launcher on a folder that
`aligntrain prepare` made:

    torchrun --nproc-per-node 8 -m aligntrain.train runs/vicuna-7b-pretrain
    deepspeed --hostfile hosts --module aligntrain.train runs/vicuna-7b-pretrain

Rank and world size come from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which all
three set; without them the process is the only one.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import AlignError, InputError, atomic
from alignshared.console import notes, show_error, show_log
from aligntrain.runs.folder import RunSpec, finish, read_run
from aligntrain.train import checkpoint as checkpoints

if TYPE_CHECKING:
    from aligntrain.train.deepspeed_engine import Engine
    from aligntrain.train.trainer import TrainingData

LAUNCHER = "ALIGNTRAIN_LAUNCHER"
"""Environment variable with the id of `launch`'s process, which gets errors and ends this one."""

LOGS = "logs"
"""Folder in the run folder: output of every rank started by `launch` except the first."""

_WATCH_EVERY_S = 0.5

log = logging.getLogger("aligntrain")


def main(arguments: list[str] | None = None) -> int:
    """Train according to the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m aligntrain.train")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--profile", type=int, metavar="N", help="profile N steps on rank 0")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="of the deepspeed launcher")
    options = parser.parse_args(arguments)
    launched = _join_launcher(options.run)
    set_environment(options.local_rank)
    show_log("aligntrain", logging.INFO if os.environ["RANK"] == "0" else logging.WARNING)
    try:
        work(options.run, resume=options.resume, profile=options.profile)
    except AlignError as error:
        if launched:  # the file of torch's agent (`ProcessFailure`)
            now, code = int(time.time()), error.exit_code
            report = {"message": str(error), "timestamp": now, "exit_code": code}
            atomic.write(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), json.dumps(report))
        else:
            show_error(str(error))
        return error.exit_code
    # Not after an error: this rank and the others would wait for each other.
    from aligntrain.train.deepspeed_engine import stop_process

    stop_process()
    return 0


def work(run: Path, *, resume: bool, profile: int | None = None) -> None:
    """Train the run folder `run`, from the start or from its newest checkpoint.

    Rank 0 profiles `profile` steps.

    Raises:
        AlignError: the run cannot start or continue, or memory ran out.
    """
    try:
        _work(run, resume, profile)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        traceback.print_exc()
        raise AlignError(
            "memory ran out; lower batch.micro_size, set gradient_checkpointing, or raise "
            "zero_stage (`aligntrain plan` says what a recipe needs)."
        ) from error


def _work(run: Path, resume: bool, profile: int | None) -> None:
    spec = read_run(run)
    checkpoint = checkpoints.newest_checkpoint(run)
    if checkpoint is not None and not resume:
        raise InputError(
            f"{run} has a checkpoint of step {checkpoint.step}; give --resume to continue from "
            "it, or another --output to begin anew."
        )
    began = time.monotonic()

    from aligntrain.train import deepspeed_engine as deepspeed

    deepspeed.choose_accelerator()  # before anything below imports DeepSpeed
    from aligntrain.train.save import export
    from aligntrain.train.setup import build_data, build_model, compile_layers, device_of_rank

    deepspeed.start_process(device_of_rank())
    model, processor = build_model(spec)
    data = build_data(spec, processor)
    start = 0
    if checkpoint is not None:
        checkpoints.check_fits(checkpoint, checkpoints.model_identity(model.config), spec.recipe)
        start = data.order.steps_to(data.order.restore(checkpoint.meta["position"]))
        checkpoints.load_weights(checkpoint, model)  # before ZeRO-3 partitions them
    micro_batches = data.share.micro_batches(spec.recipe.batch.global_size)
    engine = deepspeed.build_engine(model, spec.recipe, micro_batches=micro_batches)
    if checkpoint is not None:
        checkpoints.load_state(checkpoint, deepspeed.MasterState(engine))
    if spec.recipe.compile:
        compile_layers(engine.module)
    result = _train(spec, engine, data, start, profile)
    export(engine.module, processor, spec)
    if data.share.rank == 0:
        finish(run, {**result, "seconds": time.monotonic() - began})


def _train(
    spec: RunSpec, engine: "Engine", data: "TrainingData", start: int, profile: int | None
) -> dict[str, Any]:
    """Make the steps after `start`; return the run's result."""
    from aligntrain.train.loggers import Recorder, open_loggers
    from aligntrain.train.metrics import sentence
    from aligntrain.train.trainer import Trainer

    first = data.share.rank == 0
    recorder = Recorder(spec.folder, start, open_loggers(spec, start)) if first else None
    trainer = Trainer(engine, data, spec.recipe, folder=spec.folder, recorder=recorder)
    with recorder or nullcontext():
        trainer.run(start, notes if first else None, profile if first else None)
    result = trainer.result()
    if result["throughput"] is not None:
        log.info("%s.", sentence(result["throughput"]))
    return result


def set_environment(local_rank: int | None = None) -> None:
    """Complete the environment that launchers set, before torch and its libraries read it."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    defaults = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",  # any free port
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // ranks_here)))
    if sys.platform == "linux" and ranks_here == int(os.environ["WORLD_SIZE"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a container may not know its own name


def _join_launcher(run: Path) -> bool:
    """Tie this process to `launch` if started by it, and return whether it was."""
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is None:
        return False
    rank = os.environ["RANK"]
    if rank != "0":
        with (run / LOGS / f"rank-{rank}.log").open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the launcher reports Ctrl-C
    threading.Thread(target=_end_with, args=(int(launcher),), daemon=True).start()
    return True


def _end_with(launcher: int) -> None:
    # torch's agent leaves its processes running when it is killed.
    while os.getppid() == launcher:
        time.sleep(_WATCH_EVERY_S)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # with the data workers
    os._exit(1)
