"""How `aligncurate score` on Ray grows: memory of the driver by pairs, and what the engine itself
takes for each unit.

The pairs are small pictures, each its own, scored by a CLIP of one narrow layer: enough for every
step to run, little enough for a million.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peers.corpus import CACHE
from peers.drive import drive
from PIL import Image
from recording import record, table
from safetensors.torch import save_file

PACKAGES = ["aligncurate", "open_clip_torch", "torch", "ray", "pyarrow"]
SIDE = 16
ROWS_PER_FILE = 50_000
SHARD_ROWS = 10_000

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


def by_rows(counts: list[int], folder: Path) -> list[dict[str, float]]:
    """Seconds and the driver's peak memory for each number of pairs."""
    model = make_narrow_clip()
    return [
        drive(
            expect=count,
            input=make_small_pairs(count),
            output=folder / f"rows-{count}",
            model=model,
            shard_rows=SHARD_ROWS,
        )
        for count in counts
    ]


def by_units(counts: list[int]) -> list[dict[str, float]]:
    """What the engine takes for units that do nothing."""
    return [drive(expect=count, units=count) for count in counts]


def report(results: dict[str, Any]) -> str:
    """The page: two tables and what they show."""
    rows, units = results["rows"], results["units"]
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
    parser.add_argument("--units", type=int, nargs="+", default=[1_000, 10_000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        results = {
            "units": by_units(given.units),
            "rows": by_rows(given.rows, folder),
        }
    record("score_scale", "How scoring grows", PACKAGES, results, report(results))


if __name__ == "__main__":
    main()
