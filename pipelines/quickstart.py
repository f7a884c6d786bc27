"""The whole method on the shipped pictures: score, bucket, report; everything lands in data/demo.

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
