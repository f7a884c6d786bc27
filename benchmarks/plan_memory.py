"""What `aligntrain plan` says of a step's memory, beside what the step takes.

Each row is a run of its own, of the engine that trains, on full batches.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.talks import write_towers
from recording import record, table

PACKAGES = ["aligntrain", "torch", "transformers", "deepspeed"]
DRIVER = Path(__file__).parent / "peers/steps.py"
WITHIN = 0.15

LLM = {
    "vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12,
}  # fmt: skip
CASES: dict[str, tuple[str, list[str]]] = {
    "finetune": ("finetune", []),
    "finetune, half the batch": ("finetune", ["batch.micro_size=4", "batch.global_size=4"]),
    "finetune, gradient checkpointing": ("finetune", ["gradient_checkpointing=true"]),
    "finetune, zero_stage 2": ("finetune", ["zero_stage=2"]),
    "finetune, padded batches": ("finetune", ["batch.packing=false"]),
    "pretrain": ("pretrain", []),
    "pretrain, gradient checkpointing": ("pretrain", ["gradient_checkpointing=true"]),
}


def write_recipe(folder: Path, precision: str) -> Path:
    """A recipe of a small LLM with a true vocabulary, written with its towers into `folder`."""
    vision, llm = write_towers(folder, **LLM)
    path = folder / "memory.yaml"
    path.write_text(
        f"""
common:
  model: {{vision_tower: {vision}, llm: {llm}, levels: 8}}
  data: {{max_length: 512, aspect: crop}}
  precision: {precision}
  optimizer: {{lr: 1e-5}}
  batch: {{global_size: 8, micro_size: 8}}
pretrain: {{data: {{template: plain}}}}
finetune: {{}}
""",
        encoding="utf-8",
    )
    return path


def measure(recipe: Path, phase: str, overrides: list[str]) -> dict[str, int]:
    """Predicted and measured bytes of one case."""
    command = [sys.executable, str(DRIVER), str(recipe), phase]
    command += [word for setting in overrides for word in ("--set", setting)]
    # What is freed goes back at once, so that it is not counted.
    quick = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | quick
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(results: dict[str, Any]) -> str:
    """The page: one table, and whether all are near enough."""
    rows: list[list[object]] = []
    worst = 0.0
    for name, found in results["cases"].items():
        off = found["predicted"] / found["measured"] - 1
        worst = max(worst, abs(off))
        rows.append(
            [name, *(f"{found[k] / 1e9:.2f}" for k in ("predicted", "measured")), f"{off:+.0%}"]
        )
    sizes = ", ".join(f"{key} {value}" for key, value in LLM.items())
    return "\n".join(
        [
            table(["run", "predicted, GB", "measured, GB", "off by"], rows), "",
            f"The worst is off by {worst:.0%}; demanded are {WITHIN:.0%} or less: "
            f"{'met' if worst <= WITHIN else 'not met'}.", "",
            f"LLM: Llama, {sizes}; 8 samples of 512 tokens, 144 of them an image's, "
            f"{results['precision']}.",
        ]
    )  # fmt: skip


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    given = parser.parse_args()
    found: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        recipe = write_recipe(Path(temporary), given.precision)
        for name in given.only:
            found[name] = measure(recipe, *CASES[name])
            sys.stdout.write(f"{name}: {found[name]}\n")
            sys.stdout.flush()
    results = {"precision": given.precision, "cases": found}
    record("plan_memory", "Predicted and measured memory", PACKAGES, results, report(results))


if __name__ == "__main__":
    main()
