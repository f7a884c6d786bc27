"""Work for Ray's processes. They import this file to do it, so it imports nothing heavy."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MEGABYTES_EACH = 4


@dataclass(frozen=True)
class Square:
    """Makes the function that squares and tells the process that it ran in."""

    def __call__(self) -> Callable[[int], tuple[int, int]]:
        return lambda number: (number * number, os.getpid())


@dataclass(frozen=True)
class Fail:
    """Makes a function that raises `error`, or raises it itself."""

    error: Exception
    at_start: bool = False

    def __call__(self) -> Callable[[int], int]:
        if self.at_start:
            raise self.error

        def fail(number: int) -> int:
            raise self.error

        return fail


@dataclass(frozen=True)
class FailOn:
    """Makes a function that cannot do one number."""

    number: int

    def __call__(self) -> Callable[[int], int]:
        def fail(number: int) -> int:
            if number == self.number:
                raise ZeroDivisionError("by nothing")
            return number

        return fail


@dataclass(frozen=True)
class Trouble:
    """Makes a function that dies of one number and never ends with another."""

    deadly: int
    endless: int

    def __call__(self) -> Callable[[int], int]:
        def work(number: int) -> int:
            if number == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == self.endless:
                time.sleep(10_000)
            return number

        return work


@dataclass(frozen=True)
class Decode:
    """Makes a function that quickly turns a number into some megabytes."""

    def __call__(self) -> Callable[[int], tuple[int, float, Any]]:
        return lambda number: (
            number,
            time.time(),
            np.random.default_rng(number).integers(0, 255, MEGABYTES_EACH << 20, np.uint8),
        )


@dataclass(frozen=True)
class Slow:
    """Makes a function that takes its time."""

    def __call__(self) -> Callable[[Any], tuple[int, float, float, int]]:
        def slow(item: tuple[int, float, Any]) -> tuple[int, float, float, int]:
            time.sleep(0.2)
            return item[0], item[1], time.time(), os.getpid()

        return slow


@dataclass(frozen=True)
class Meet:
    """Makes a function that waits until a second process is at work."""

    folder: Path

    def __call__(self) -> Callable[[Any], int]:
        def meet(_item: Any) -> int:
            (self.folder / str(os.getpid())).touch()
            end = time.monotonic() + 240
            while len(list(self.folder.iterdir())) < 2 and time.monotonic() < end:
                time.sleep(0.1)
            return os.getpid()

        return meet
