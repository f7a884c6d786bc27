"""The whole method on the shipped images: levels in data/demo, models and a page on them in runs.

uv run python pipelines/quickstart.py
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

LEVELS = [
    "aligncurate score --input demo --output data/demo/score",
    "aligncurate bucket --input data/demo/score --output data/demo/bucket --levels 8",
    "aligncurate report --input data/demo/bucket --output data/demo/report",
]
TRAINING = [
    "aligntrain run pretrain --data data/demo/bucket --resume",
    "python pipelines/demo_data/build_instructions.py --output data/demo/instructions",
    "aligncurate ingest --input data/demo/instructions/instructions.json --output data/demo/ingest",
    "aligntrain run finetune --data data/demo/ingest --resume",
    "aligntrain run pretrain --data data/demo/bucket --set model.mixing=none --output "
    "runs/demo/plain --resume",
    "python pipelines/demo_data/measure.py --pretrained runs/demo-pretrain "
    "--finetuned runs/demo-finetune --plain runs/demo/plain --output runs/demo/figures.json",
    "python pipelines/demo_data/show.py runs/demo --open",
]


def main() -> None:
    """Run the commands one after the other, shown as one would type them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--levels-only", action="store_true", help="stop before training")
    steps = LEVELS if parser.parse_args().levels_only else LEVELS + TRAINING
    for step in steps:
        sys.stderr.write(f"\n$ {step}\n")
        done = subprocess.run(_command(step), check=False)
        if done.returncode:
            sys.exit(done.returncode)


def _command(step: str) -> list[Path | str]:
    """`step` with this environment's commands and this repository's scripts, from any folder."""
    command, *arguments = shlex.split(step)
    if command == "python":
        script, *arguments = arguments
        return [sys.executable, Path(__file__).parents[1] / script, *arguments]
    return [Path(sys.executable).parent / command, *arguments]


if __name__ == "__main__":
    main()
