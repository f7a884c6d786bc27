"""How the seconds of a training step grow: with the length of the samples, the images in each, and
the number of processes.

Fine-tuning, packed, on full batches; each point is a run of its own, of the engine that trains. The
first step of each is not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.talks import IMAGE_TOKENS, LLM, write_towers
from recording import record, table

PACKAGES = ["aligntrain", "torch", "transformers", "deepspeed"]
DRIVER = Path(__file__).parent / "peers/steps.py"
LENGTH, BATCH = 512, 8
LONGEST = 2048
PORT = "29543"


class Steps:
    """Runs of the driver on one recipe."""

    def __init__(self, folder: Path, steps: int) -> None:
        vision, llm = write_towers(folder)
        self._steps = steps
        self._recipe = folder / "cost.yaml"
        self._recipe.write_text(
            f"""
common:
  model: {{vision_tower: {vision}, llm: {llm}, levels: 8}}
  data: {{max_length: {LENGTH}, aspect: crop}}
  precision: fp32
  optimizer: {{lr: 1e-5}}
  batch: {{global_size: {BATCH}, micro_size: {BATCH}}}
pretrain: {{data: {{template: plain}}}}
finetune: {{}}
""",
            encoding="utf-8",
        )

    def run(self, *, batch: int, length: int, images: int = 1, processes: int = 1) -> float:
        """Seconds of a step of `batch` samples in all, by `processes` that share the cores."""
        command = [
            sys.executable, str(DRIVER), str(self._recipe), "finetune",
            "--images", str(images), "--steps", str(self._steps),
        ]  # fmt: skip
        for setting in (
            f"data.max_length={length}", f"batch.global_size={batch}",
            f"batch.micro_size={batch // processes}",
        ):  # fmt: skip
            command += ["--set", setting]
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        shared = {
            "WORLD_SIZE": str(processes), "MASTER_PORT": PORT, "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip
        started = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]
        ended = [process.communicate() for process in started]
        for process, (_, problem) in zip(started, ended, strict=True):
            if process.returncode:
                raise RuntimeError(f"{command} ended with {process.returncode}:\n{problem[-3000:]}")
        seconds = max(json.loads(told.splitlines()[-1])["seconds"] for told, _ in ended)
        sys.stdout.write(f"{batch} x {length}, {images} images, {processes}: {seconds:.2f} s\n")
        sys.stdout.flush()
        return seconds


def report(results: dict[str, Any]) -> str:
    """The page: three tables."""

    def part(title: str, first: str, rows: list[dict[str, float]]) -> list[str]:
        cells: list[list[object]] = [
            [
                f"{row['value']:g}", f"{row['tokens']:,.0f}", f"{row['seconds']:.2f}",
                f"{row['tokens'] / row['seconds']:.0f}",
            ]
            for row in rows
        ]  # fmt: skip
        return [f"## {title}\n", table([first, "tokens", "seconds", "tokens/s"], cells), ""]

    sizes = ", ".join(f"{key} {value}" for key, value in LLM.items() if "token_id" not in key)
    return "\n".join(
        [
            *part("Length", "tokens a sample", results["length"]),
            *part("Images", f"images a sample, {IMAGE_TOKENS} tokens each", results["images"]),
            *part("Processes", "processes on the same cores", results["processes"]),
            f"A step of fine-tuning, fp32, {results['cores']} cores. LLM: Llama, {sizes}. Of "
            "lengths, all steps have the same number of tokens, so what grows is attention alone.",
        ]
    )


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    total = LENGTH * BATCH

    def row(value: int, tokens: int, seconds: float) -> dict[str, float]:
        return {"value": value, "tokens": tokens, "seconds": seconds}

    with tempfile.TemporaryDirectory() as temporary:
        steps = Steps(Path(temporary), given.steps)
        lengths = [LENGTH >> 1, LENGTH, LENGTH << 1, LONGEST]
        results = {
            "cores": len(os.sched_getaffinity(0)),
            "length": [
                row(length, total, steps.run(batch=total // length, length=length))
                for length in lengths
            ],
            "images": [
                row(images, total, steps.run(batch=BATCH // 2, length=LENGTH * 2, images=images))
                for images in (1, 2, 4, 6)
            ],
            "processes": [
                row(count, total, steps.run(batch=BATCH, length=LENGTH, processes=count))
                for count in (1, 2)
            ],
        }
    record("step_cost", "What a training step costs", PACKAGES, results, report(results))


if __name__ == "__main__":
    main()
