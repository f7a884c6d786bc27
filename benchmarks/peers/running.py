"""Running one contender once, on the clock."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from peers.contenders import Contender
from peers.corpus import Corpus

_TIME_LIMIT_S = 3600


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one contender: wall-clock seconds, and CPU seconds of the processes it ended."""

    contender: str
    pairs: int
    seconds: float
    cpu_seconds: float


def run(name: str, contender: Contender, corpus: Corpus, model: str, output: Path) -> Turn:
    """Run all commands of `contender` at once and wait for the last.

    Raises:
        RuntimeError: one failed; the end of its log is in the message.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if contender.threads:
        environment["OMP_NUM_THREADS"] = str(contender.threads)
    commands = contender.commands(corpus, model, output)
    logs = [Path(f"{output}-{number}.log") for number in range(len(commands))]
    cpu_before, began = _children_cpu(), time.perf_counter()
    processes = [
        _started(command, log, environment) for command, log in zip(commands, logs, strict=True)
    ]
    try:
        codes = [process.wait(_TIME_LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()  # of one that has ended, nothing is left to kill
    seconds = time.perf_counter() - began
    for code, command, log in zip(codes, commands, logs, strict=True):
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{tail}")
    return Turn(name, corpus.count, seconds, _children_cpu() - cpu_before)


def _started(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
