"""How `aligncurate score` on Ray grows: pairs per second by workers, memory of the driver by pairs,
and what the engine itself takes for each unit.

The pairs of the memory part are small pictures of their own, scored by a CLIP of one narrow layer:
enough for every step to run, little enough for a million. The workers part scores the pairs of
`score_throughput.py` with a real architecture.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peers.corpus import CACHE, make_corpus
from peers.weights import make_weights
from PIL import Image
from recording import record, table
from safetensors.torch import save_file

DRIVER = Path(__file__).parent / "peers/driver.py"
PACKAGES = ["aligncurate", "open_clip_torch", "torch", "ray", "pyarrow"]
SIDE = 16
ROWS_PER_FILE = 50_000
SHARD_ROWS = 10_000
START_UP_PAIRS = 128

NARROW: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": SIDE, "layers": 1, "width": 32, "patch_size": SIDE, "head_width": 32,
    },
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1,
    },
}  # fmt: skip


def make_narrow_clip() -> Path:
    """An open_clip folder of the architecture NARROW with random weights, written once."""
    folder = CACHE / "weights" / "narrow"
    if not (folder / "open_clip_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        weights = open_clip.CLIP(**NARROW).state_dict()
        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
        config = json.dumps({"model_cfg": NARROW, "preprocess_cfg": {}})
        (folder / "open_clip_config.json").write_text(config, encoding="utf-8")
    return folder


def make_small_pairs(count: int) -> Path:
    """Parquet files of `count` pairs in all, no two alike, written once; the folder."""
    folder = CACHE / f"small-{count}"
    for first in range(0, count, ROWS_PER_FILE):
        path = folder / f"part-{first // ROWS_PER_FILE:04d}.parquet"
        if path.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        numbers = range(first, min(first + ROWS_PER_FILE, count))
        columns = {
            "id": [f"{number:09d}" for number in numbers],
            "image": pa.array([_picture(number) for number in numbers], pa.binary()),
            "caption": [f"picture {number}" for number in numbers],
        }
        unfinished = path.with_suffix(".tmp")
        pq.write_table(pa.table(columns), unfinished, row_group_size=SHARD_ROWS)
        unfinished.rename(path)
    return folder


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def drive(**options: Any) -> dict[str, float]:
    """Run the driver once with `options`; what it reports.

    Raises:
        RuntimeError: it failed; the end of its log is in the message.
    """
    command = [sys.executable, str(DRIVER)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    report = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(f"{options}: {report}\n")
    sys.stdout.flush()
    return report


def by_rows(counts: list[int], folder: Path) -> list[dict[str, float]]:
    """Seconds and the driver's peak memory for each number of pairs."""
    model = make_narrow_clip()
    return [
        drive(
            input=make_small_pairs(count),
            output=folder / f"rows-{count}",
            model=model,
            shard_rows=SHARD_ROWS,
        )
        for count in counts
    ]


def by_workers(counts: list[int], model: str, pairs: int, folder: Path) -> list[dict[str, float]]:
    """Pairs per second after start-up for each number of workers."""
    found: list[dict[str, float]] = []
    few, all_pairs = make_corpus(START_UP_PAIRS), make_corpus(pairs)
    for workers in counts:
        seconds = [
            drive(
                input=corpus.llava,
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


def by_units(counts: list[int]) -> list[dict[str, float]]:
    """What the engine takes for units that do nothing."""
    return [drive(units=count) for count in counts]


def report(results: dict[str, Any]) -> str:
    """The page: three tables and what they show."""
    rows, workers, units = results["rows"], results["workers"], results["units"]
    parts = [
        "## Memory of the driver\n",
        table(
            ["pairs", "driver, peak MiB", "seconds, with start-up", "pairs/s"],
            [
                [
                    f"{r['done']:,}", f"{r['driver_mib']:.0f}", f"{r['seconds']:.0f}",
                    f"{r['done'] / r['seconds']:.0f}",
                ]
                for r in rows
            ],
        ),
        f"\nSmall pictures ({SIDE} px PNG) and a CLIP of one narrow layer, {SHARD_ROWS:,} pairs a "
        "shard.",
        "\n## Workers\n",
        table(
            ["workers", "pairs/s", "× one worker"],
            [
                [
                    r["workers"], f"{r['pairs_per_s']:.1f}",
                    f"{r['pairs_per_s'] / workers[0]['pairs_per_s']:.2f}",
                ]
                for r in workers
            ],
        ),
        f"\n{results['pairs']:,} pairs, {results['model']}, random weights, fp32, on a Ray cluster "
        f"on this machine; rate after start-up. It has {results['cores']} cores, so more workers "
        "than that can bring nothing.",
        "\n## Units\n",
        table(
            ["units", "seconds, with start-up", "driver, peak MiB"],
            [
                [f"{r['done']:,}", f"{r['seconds']:.1f}", f"{r['driver_mib']:.0f}"]
                for r in units
            ],
        ),
        "\nUnits that do nothing, through the engine with two actors: what Ray and the driver take "
        "for a unit of any size.",
    ]  # fmt: skip
    return "\n".join(parts)


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--units", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--model", default="ViT-S-32-alt")
    parser.add_argument("--pairs", type=int, default=2_000, help="of the workers part")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        results = {
            "cores": len(os.sched_getaffinity(0)),
            "model": given.model,
            "pairs": given.pairs,
            "units": by_units(given.units),
            "rows": by_rows(given.rows, folder),
            "workers": by_workers(given.workers, given.model, given.pairs, folder),
        }
    record("score_scale", "How scoring grows", PACKAGES, results, report(results))


if __name__ == "__main__":
    main()
