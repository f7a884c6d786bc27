"""The driver of a run on Ray as a process of its own: what it takes in time and memory itself.

Ray's workers are other processes and are not counted.
"""

import argparse
import json
import resource
import sys
import time

from aligncurate import Execution, score
from aligncurate.engine import Step, connected, map_on_ray

_KIB_PER_MIB = 1024


def main() -> None:
    """Score `--input`, or send `--units` empty units through the engine; report on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--input", "--image-root", "--output", "--model", "--weights"):
        parser.add_argument(name)
    parser.add_argument("--shard-rows", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--units", type=int)
    given = parser.parse_args()
    began = time.perf_counter()
    done = _send(given.units, given.workers) if given.units else _score(given)
    report = {
        "done": done,
        "seconds": time.perf_counter() - began,
        "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MIB,
    }
    sys.stdout.write(json.dumps(report) + "\n")


def _score(given: argparse.Namespace) -> int:
    dataset = score(
        given.input,
        given.output,
        image_root=given.image_root,
        model=given.model,
        weights=given.weights,
        precision="fp32",
        shard_rows=given.shard_rows,
        execution=Execution(engine="ray", workers=given.workers, gpus=0),
    )
    return dataset.manifest.rows


def _send(units: int, workers: int) -> int:
    with connected(None, workers, verbose=False):
        return sum(1 for _ in map_on_ray([Step(_Nothing, actors=workers)], list(range(units))))


class _Nothing:
    """Work that takes no time, so that what is measured is the engine's own."""

    def __call__(self, unit: int) -> int:
        return unit


if __name__ == "__main__":
    main()
