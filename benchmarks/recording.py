"""What every benchmark writes down: its numbers, the machine, the versions and the command."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, system and Python."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def record(name: str, title: str, packages: Iterable[str], results: Any, report: str) -> None:
    """Write `results/<name>.json` and, for readers, `results/<name>.md` with `report` in it."""
    facts: dict[str, Any] = {
        "benchmark": name,
        "command": shlex.join(["uv", "run", "python", f"benchmarks/{name}.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {package: version(package) for package in packages},
    }
    RESULTS.mkdir(exist_ok=True)
    data = json.dumps(facts | {"results": results}, indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(data + "\n", encoding="utf-8")
    page = f"# {title}\n\n```sh\n{facts['command']}\n```\n\n{report.strip()}\n\n{_setting(facts)}\n"
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column is left-aligned, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _setting(facts: dict[str, Any]) -> str:
    here, versions = facts["machine"], facts["versions"]
    packages = ", ".join(f"{package} {number}" for package, number in versions.items())
    return (
        f"Measured {facts['date']} on {here['processor']}, {here['cores']} cores, "
        f"{here['memory_gib']} GiB, {here['system']}, Python {here['python']}; {packages}."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
