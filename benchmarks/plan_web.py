"""What scoring hundreds of millions of pairs would take: hours, cost, requests to the object store,
and what would be the limit first. Arithmetic on what was measured, no run.

The engine's and the driver's own share come from `results/score_scale.json` and the pass over the
scores from `results/bucket_scale.json`, as measured on the machine named there. The rate of a GPU,
the bandwidth and the prices are assumptions and can be given; the defaults are published ones.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from recording import RESULTS, record, table

MIB = 1 << 20
READ_AT_ONCE = 64 * MIB
"""What a worker reads of a tar in one request."""
INDEX_WINDOW = 4 * MIB
"""What planning reads of a remote tar in one request."""
UPLOAD_PART = 10 * MIB
"""What pyarrow sends of a shard in one request."""
MANIFEST_ENTRY = 180
"""Bytes of a shard in a manifest: its name, counts and SHA-256, indented."""
RECORD_FILES = 1
"""Small files that each unit leaves beside its shard until the run ends."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is assumed."""

    pairs: float
    bytes_per_pair: float
    shard_rows: int
    gpus: int
    pairs_per_s_per_gpu: float
    gpu_hour: float
    get_per_1000: float
    put_per_1000: float
    nodes: int
    node_mib_per_s: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the work that is done in one place, in hours, and how it grows."""

    what: str
    hours: float
    grows_with: str


def engine_seconds_per_unit() -> float:
    """What Ray and the driver take for a unit more, by the runs of units that do nothing."""
    few, *_, many = _results("score_scale")["units"]
    return (many["seconds"] - few["seconds"]) / (many["done"] - few["done"])


def bucket_seconds_per_row() -> float:
    """Of the largest dataset of scores that was sorted into levels."""
    largest = _results("bucket_scale")[-1]
    return largest["runs"]["aligncurate bucket"][0]["seconds"] / largest["rows"]


def driver_mib() -> tuple[float, float]:
    """Peak memory of the driver for the fewest and for the most pairs measured."""
    rows = _results("score_scale")["rows"]
    return rows[0]["driver_mib"], rows[-1]["driver_mib"]


def _results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]


def requests(setting: Setting) -> dict[str, float]:
    """GETs and PUTs of all stages of one scoring run from remote tars to remote shards."""
    total = setting.pairs * setting.bytes_per_pair
    units = math.ceil(setting.pairs / setting.shard_rows)
    return {
        "get": total / INDEX_WINDOW + total / READ_AT_ONCE + units * (2 + RECORD_FILES),
        "put": total / UPLOAD_PART + units * (2 + RECORD_FILES),
    }


def planning_hours(setting: Setting) -> float:
    """Of the pass over remote tars that all nodes make before the first pair is scored."""
    each = setting.pairs * setting.bytes_per_pair / MIB / setting.nodes
    return each / setting.node_mib_per_s / 3600


def single_parts(setting: Setting) -> list[Part]:
    """What the driver does alone, while or before the GPUs work."""
    units = math.ceil(setting.pairs / setting.shard_rows)
    return [
        Part(
            "handing out units and taking their results",
            units * engine_seconds_per_unit() / 3600,
            "units: --shard-rows",
        ),
        Part(
            "bucket: both passes over the scores, on the machine that measured it",
            setting.pairs * bucket_seconds_per_row() / 3600,
            "pairs",
        ),
    ]


def report(setting: Setting, results: dict[str, Any]) -> str:
    """The page."""
    few, most = driver_mib()
    facts = [
        ["GPU hours", f"{results['gpu_hours']:,.0f}"],
        [f"hours of planning on {setting.nodes} nodes", f"{results['planning_hours']:,.1f}"],
        [f"hours of scoring on {setting.gpus} GPUs", f"{results['hours']:,.1f}"],
        ["cost of GPUs, $", f"{results['gpu_cost']:,.0f}"],
        ["units and shards", f"{results['units']:,}"],
        ["bytes read, TB", f"{results['terabytes']:,.1f}"],
        ["GET requests, million", f"{results['requests']['get'] / 1e6:,.1f}"],
        ["PUT requests, million", f"{results['requests']['put'] / 1e6:,.1f}"],
        ["cost of requests, $", f"{results['request_cost']:,.0f}"],
        ["read by each GPU's workers, MB/s", f"{results['mb_per_s_per_gpu']:,.1f}"],
        ["manifest, MB", f"{results['manifest_mb']:,.0f}"],
    ]
    parts = [[p["what"], f"{p['hours']:.2f}", p["grows_with"]] for p in results["single_parts"]]
    worst = max(results["single_parts"], key=lambda part: part["hours"])
    total = results["hours"]
    verdict = (
        f"Longest of what one process does: {worst['what']}, {worst['hours']:.2f} h beside "
        f"{total:.1f} h of GPUs"
    )
    return "\n".join(
        [
            table(["", f"{setting.pairs:,.0f} pairs"], facts),
            "\n## What one process does\n",
            table(["part", "hours", "grows with"], parts),
            f"\n{verdict}. It would be the limit from about "
            f"{max(1, round(setting.gpus * total / worst['hours'])):,} GPUs on.",
            f"\nMemory of the driver: {few:.0f} MiB at the fewest and {most:.0f} MiB at the most "
            "pairs measured (score_scale.md); of ids, a temporary file of 8 bytes a pair.",
            "\nPlanning reads the bytes of remote tars once for their index, on all nodes; of "
            "Parquet it reads footers and ids alone.",
            "\nAssumed: " + ", ".join(f"{k} {v:,g}" for k, v in asdict(setting).items()) + ". The "
            "rate of a GPU is the one published for clip-retrieval with ViT-L/14 at 224 px on an "
            "A100; our own on a GPU has not been measured. Request prices are those of S3 "
            "Standard. Nothing here was run at this size.",
        ]
    )


def main() -> None:
    """Work it out and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pairs", type=float, default=400e6)
    parser.add_argument("--bytes-per-pair", type=float, default=50e3)
    parser.add_argument("--shard-rows", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--pairs-per-s-per-gpu", type=float, default=312)
    parser.add_argument("--gpu-hour", type=float, default=2.0, help="$")
    parser.add_argument("--get-per-1000", type=float, default=0.0004, help="$")
    parser.add_argument("--put-per-1000", type=float, default=0.005, help="$")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--node-mib-per-s", type=float, default=1000)
    setting = Setting(**vars(parser.parse_args()))
    gpu_hours = setting.pairs / setting.pairs_per_s_per_gpu / 3600
    asked = requests(setting)
    units = math.ceil(setting.pairs / setting.shard_rows)
    cost = asked["get"] * setting.get_per_1000 + asked["put"] * setting.put_per_1000
    results: dict[str, Any] = {
        "gpu_hours": gpu_hours,
        "hours": gpu_hours / setting.gpus,
        "planning_hours": planning_hours(setting),
        "gpu_cost": gpu_hours * setting.gpu_hour,
        "units": units,
        "terabytes": setting.pairs * setting.bytes_per_pair / 1e12,
        "requests": asked,
        "request_cost": cost / 1000,
        "mb_per_s_per_gpu": setting.pairs_per_s_per_gpu * setting.bytes_per_pair / 1e6,
        "manifest_mb": units * MANIFEST_ENTRY / 1e6,
        "single_parts": [asdict(part) for part in single_parts(setting)],
    }
    record("plan_web", "A plan for the web", ["aligncurate"], results, report(setting, results))


if __name__ == "__main__":
    main()
