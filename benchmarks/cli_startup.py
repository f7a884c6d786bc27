"""How long the commands take to answer `--help`, beside what Python itself takes to do nothing."""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from recording import record, table

SCRIPTS = Path(sys.executable).parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer, rich.console'": [sys.executable, "-c", "import typer, rich.console"],
    "aligncurate --help": [str(SCRIPTS / "aligncurate"), "--help"],
    "aligncurate score --help": [str(SCRIPTS / "aligncurate"), "score", "--help"],
    "aligntrain --help": [str(SCRIPTS / "aligntrain"), "--help"],
}


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one run of `command`.

    Raises:
        subprocess.CalledProcessError: it failed, so its time means nothing.
    """
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Median, least and greatest seconds of each command over `runs` rounds.

    A round runs each command once, so that a busy minute weighs on all of them; the round before
    the first is not counted, for it reads the files from disk.
    """
    rounds = [{name: seconds(c) for name, c in COMMANDS.items()} for _ in range(runs + 1)][1:]
    return {
        name: {
            "median_s": round(statistics.median(r[name] for r in rounds), 4),
            "min_s": round(min(r[name] for r in rounds), 4),
            "max_s": round(max(r[name] for r in rounds), 4),
        }
        for name in COMMANDS
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="rounds that count (default: 20)")
    runs = parser.parse_args().runs
    results = measure(runs)
    rows = [
        [f"`{name}`", *(f"{times[key]:.3f}" for key in ("median_s", "min_s", "max_s"))]
        for name, times in results.items()
    ]
    report = f"Seconds of wall-clock time over {runs} rounds, files in the page cache.\n\n"
    report += table(["command", "median", "least", "greatest"], rows)
    record("cli_startup", "Start-up of the commands", ["typer", "rich", "pyarrow"], results, report)
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main()
