"""Runs of `driver.py`, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("driver.py")


def drive(*, expect: int, **options: Any) -> dict[str, float]:
    """Run the driver once with `options`; what it reports.

    Raises:
        RuntimeError: it failed, or did not do all of `expect` pairs or units.
    """
    command = [sys.executable, str(DRIVER)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    report = json.loads(done.stdout.splitlines()[-1])
    if report["done"] != expect:
        raise RuntimeError(f"{' '.join(command)} did {report['done']} of {expect}:\n{done.stderr}")
    sys.stdout.write(f"{' '.join(command[2:])}: {report}\n")
    sys.stdout.flush()
    return report
