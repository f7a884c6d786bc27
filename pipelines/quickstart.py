"""The whole method on the shipped pictures, into data/demo: levels, then a model that answers.

uv run python pipelines/quickstart.py
"""

import shlex
import subprocess
import sys
from pathlib import Path

STEPS = [
    "aligncurate score --input demo --output data/demo/score",
    "aligncurate bucket --input data/demo/score --output data/demo/bucket --levels 8",
    "aligncurate report --input data/demo/bucket --output data/demo/report",
    "aligntrain run pretrain --data data/demo/bucket --output data/demo/pretrain --resume",
    "python pipelines/demo_data/build_instructions.py --output data/demo/instructions",
    "aligncurate ingest --input data/demo/instructions/instructions.json --output data/demo/ingest",
    "aligntrain run finetune --data data/demo/ingest --output data/demo/finetune --resume",
    "python pipelines/demo_data/answer_questions.py data/demo/finetune --pictures 40 --untrained",
]


def main() -> None:
    """Run the commands one after the other, shown as one would type them."""
    commands = Path(sys.executable).parent
    for step in STEPS:
        sys.stderr.write(f"\n$ {step}\n")
        command, *arguments = shlex.split(step)
        done = subprocess.run([commands / command, *arguments], check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
