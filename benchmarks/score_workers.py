"""Pairs per second of `aligncurate score` by number of Ray workers on this machine."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from peers.corpus import make_corpus
from peers.drive import drive
from peers.weights import make_weights
from recording import record, table

PACKAGES = ["aligncurate", "open_clip_torch", "torch", "ray"]
START_UP_PAIRS = 128


def by_workers(counts: list[int], model: str, pairs: int, folder: Path) -> list[dict[str, float]]:
    """Pairs per second after start-up for each number of workers."""
    found: list[dict[str, float]] = []
    few, all_pairs = make_corpus(START_UP_PAIRS), make_corpus(pairs)
    for workers in counts:
        seconds = [
            drive(
                expect=corpus.count,
                input=corpus.llava,
                image_root=corpus.images,
                output=folder / f"workers-{workers}-{corpus.count}",
                model=model,
                weights=make_weights(model),
                shard_rows=32,
                workers=workers,
            )["seconds"]
            for corpus in (few, all_pairs)
        ]
        rate = (pairs - START_UP_PAIRS) / (seconds[1] - seconds[0])
        found.append({"workers": workers, "pairs_per_s": rate})
    return found


def report(results: dict[str, Any]) -> str:
    """The page: one table and what it shows."""
    workers = results["workers"]
    first = workers[0]["pairs_per_s"]
    rows: list[list[object]] = [
        [w["workers"], f"{w['pairs_per_s']:.1f}", f"{w['pairs_per_s'] / first:.2f}"]
        for w in workers
    ]
    return (
        table(["workers", "pairs/s", "× one worker"], rows)
        + f"\n\n{results['pairs']:,} pairs, {results['model']}, random weights, fp32; rate after "
        f"start-up. The machine has {results['cores']} cores, so more workers than that can bring "
        "nothing."
    )


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="ViT-S-32-alt")
    parser.add_argument("--pairs", type=int, default=2_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workers = by_workers(given.workers, given.model, given.pairs, Path(temporary))
    results = {
        "cores": len(os.sched_getaffinity(0)),
        "model": given.model,
        "pairs": given.pairs,
        "workers": workers,
    }
    record("score_workers", "How scoring grows with workers", PACKAGES, results, report(results))


if __name__ == "__main__":
    main()
