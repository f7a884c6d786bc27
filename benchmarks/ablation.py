"""The paper's ablations at the demo's size, on what `pipelines/quickstart.py` has made.

Runs `aligntrain ablate demo`, which goes on where it stopped, with the questions which group a test
image is of, whose concept nothing was trained on.
Each variant is held against mixing `adaptive`, paired by seed.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from recording import RESULTS, record

PACKAGES = ["aligntrain", "torch", "transformers", "deepspeed"]


def main() -> None:
    """Make the runs that are missing, and write down what all came to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--output", type=Path, default=Path("runs/ablation-demo"))
    parser.add_argument("--kinds", nargs="+", default=["group"])
    parser.add_argument("--only", nargs="+", default=[], help="variants; by default all")
    given = parser.parse_args()
    command = [
        Path(sys.executable).with_name("aligntrain"), "ablate", "demo",
        "--pretrain-data", given.data / "bucket", "--finetune-data", given.data / "ingest",
        "--questions", given.data / "instructions/questions.json", "--output", given.output,
    ]  # fmt: skip
    for option, values in (("--kinds", given.kinds), ("--only", given.only)):
        for value in values:
            command += [option, value]
    subprocess.run(list(map(str, command)), check=True)
    shutil.copyfile(given.output / "ablation.svg", RESULTS / "ablation.svg")
    _, _, report = (given.output / "ablation.md").read_text("utf-8").partition("\n")
    results = json.loads((given.output / "ablation.json").read_bytes())
    results["questions"]["file"] = "instructions/questions.json"  # wherever the data lies
    record("ablation", "The paper's ablations at the demo's size", PACKAGES, results, report)


if __name__ == "__main__":
    main()
