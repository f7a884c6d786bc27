"""What one kill costs: our list of units beside Ray Data's CheckpointConfig, on the same rows.

Both read the same Parquet files on Ray, spend the same time on each row and write Parquet. Each run
is killed (SIGKILL of the driver) once half of the rows are done, and started again. Every row that
is worked on is counted, so the sum over both starts tells how many were done twice.

uv run python benchmarks/resume_units.py
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from recording import record, table

from aligncurate.engine import connected

FILES, ROWS_PER_FILE, UNIT_ROWS = 4, 1500, 125
ROWS = FILES * ROWS_PER_FILE
ROW_S = 0.004
WORKERS = 2
LOGICAL_CPUS = 8
"""Beside the workers, CheckpointConfig's reading, filtering and writing want CPUs; where all are
taken, they wait for ever.
"""
WAYS = {
    "units": f"aligncurate, units of {UNIT_ROWS} rows",
    "checkpoint": "CheckpointConfig, as it comes",
    "checkpoint-small": f"CheckpointConfig, blocks of {UNIT_ROWS} rows",
}


def main() -> None:
    """Measure every way, or, as a child, run one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/resume_units"))
    parser.add_argument(
        "--child", choices=WAYS, help="run one way in --work, for the script itself"
    )
    arguments = parser.parse_args()
    if arguments.child:
        way = _run_units if arguments.child == "units" else _run_checkpoint
        way(arguments.work, small=arguments.child == "checkpoint-small")
        return
    shutil.rmtree(arguments.work, ignore_errors=True)
    results: dict[str, dict[str, Any]] = {}
    with connected(None, LOGICAL_CPUS - 2, verbose=False):
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        for way in WAYS:
            results[way] = measure(way, arguments.work / way)
            record("resume_units", "One kill: our units beside CheckpointConfig",
                   ["ray", "pyarrow"], results, report(results))  # fmt: skip


def measure(way: str, work: Path) -> dict[str, Any]:
    """Rows saved, redone, lost and doubled after one kill."""
    _write_input(work)
    start(way, work, kill_at=ROWS // 2)
    before, saved = _counted(work), _written(work)
    start(way, work)
    total, ids = _counted(work), _ids(work / "out")
    return {
        "rows": ROWS,
        "done_at_kill": before,
        "saved_at_kill": saved,
        "done_twice": total - ROWS,
        "missing": ROWS - len(set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "files": len(_shards(work / "out")),
    }


def start(way: str, work: Path, kill_at: int | None = None) -> None:
    """Run `way` in a process of its own, to its end or until `kill_at` rows are done."""
    command = [sys.executable, __file__, "--child", way, "--work", str(work)]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        time.sleep(0.02)
        if kill_at is not None and _counted(work) >= kill_at:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            _await_workers(work)
            return
    if process.returncode:
        raise SystemExit(f"{way} ended with {process.returncode}")


def report(results: dict[str, dict[str, Any]]) -> str:
    """The table and what it means."""
    header = ["way", "done at the kill", "saved at the kill", "done twice", "missing", "doubled",
              "files"]  # fmt: skip
    keys = ["done_at_kill", "saved_at_kill", "done_twice", "missing", "doubled", "files"]
    rows = [[WAYS[way], *(f"{found[key]:,}" for key in keys)] for way, found in results.items()]
    return (
        f"{ROWS:,} rows in {FILES} Parquet files, {ROW_S * 1000:g} ms of work for each, {WORKERS} "
        "actors on one machine; the driver is killed (SIGKILL) once half of the rows are done and "
        "started again.\n\n" + table(header, rows)
    )


# The two ways


@dataclass(frozen=True)
class Work:
    """Makes the work on a table of rows: some time for each, one more column, all counted."""

    log: str

    def __call__(self) -> Callable[[pa.Table], pa.Table]:
        """The function from rows to rows with a score."""

        def work(rows: pa.Table) -> pa.Table:
            values = rows["value"].to_numpy()
            scores = np.empty(len(values), np.float32)
            for row, value in enumerate(values):
                time.sleep(ROW_S)
                scores[row] = np.cos(value)
                with open(f"{self.log}/{os.getpid()}", "ab") as counter:
                    counter.write(b".")
            return rows.append_column("score", pa.array(scores))

        return work


@dataclass(frozen=True)
class WorkUnit:
    """Makes the work on a unit, from reading to its record."""

    work: Work
    output: str

    def __call__(self) -> Callable[[Any], Any]:
        """The function from unit to record."""
        from aligncurate.sources.source import parquet_rows
        from aligncurate.units.records import FinishedBatch, Timing, write_unit
        from alignshared import Storage

        function, output = self.work(), Storage(self.output)

        def unit(item: Any) -> Any:
            batches = (
                FinishedBatch(function(pa.Table.from_batches([batch])), [], Timing())
                for _, batch in parquet_rows(item, ["id", "value"], UNIT_ROWS)
            )
            return write_unit(output, item.index, _schema(), batches)

        return unit


def _run_units(work: Path, *, small: bool) -> None:
    from aligncurate.engine import Step, map_on_ray
    from aligncurate.output.folder import open_output
    from aligncurate.sources.source import cut_into_units
    from aligncurate.units.run import UnitRun
    from alignshared import Storage
    from alignshared.manifest import RUN_FOLDER

    output = Storage(work / "out")
    open_output(output, {"input": str(work)}, overwrite=False)
    files = [(str(file), ROWS_PER_FILE) for file in sorted((work / "in").iterdir())]
    run = UnitRun(output, cut_into_units(files, UNIT_ROWS), _schema())
    step = Step(WorkUnit(Work(str(work / "log")), output.location), actors=WORKERS)
    with connected("auto", 0, verbose=False):
        run.run(lambda units: map_on_ray([step], units))
    output.delete(RUN_FOLDER)


def _run_checkpoint(work: Path, *, small: bool) -> None:
    from ray.data.checkpoint import CheckpointConfig

    log = str(work / "log")

    class Worker:
        """An actor of Ray Data."""

        def __init__(self) -> None:
            self._work = Work(log)()

        def __call__(self, rows: pa.Table) -> pa.Table:
            return self._work(rows)

    with connected("auto", 0, verbose=False):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.checkpoint_config = CheckpointConfig(
            id_column="id",
            checkpoint_path=str((work / "checkpoint").resolve()),
            delete_checkpoint_on_success=False,
        )
        dataset = ray.data.read_parquet(str((work / "in").resolve()))
        if small:
            dataset = dataset.repartition(target_num_rows_per_block=UNIT_ROWS)
        pool = ray.data.ActorPoolStrategy(size=WORKERS)
        dataset.map_batches(
            Worker, batch_size=UNIT_ROWS, batch_format="pyarrow", compute=pool
        ).write_parquet(str((work / "out").resolve()))


# Counting


def _schema() -> pa.Schema:
    return pa.schema([("id", pa.string()), ("value", pa.float64()), ("score", pa.float32())])


def _write_input(work: Path) -> None:
    (work / "in").mkdir(parents=True)
    (work / "log").mkdir()
    (work / "out").mkdir()
    values = np.random.default_rng(0).normal(size=ROWS)
    for file in range(FILES):
        rows = range(file * ROWS_PER_FILE, (file + 1) * ROWS_PER_FILE)
        columns = {"id": [f"{row:06d}" for row in rows], "value": values[rows.start : rows.stop]}
        pq.write_table(pa.table(columns), work / "in" / f"part-{file}.parquet")


def _counted(work: Path) -> int:
    return sum(file.stat().st_size for file in (work / "log").iterdir())


def _await_workers(work: Path) -> None:
    """Workers outlive their driver by moments."""
    last, since = _counted(work), time.monotonic()
    while time.monotonic() - since < 5:
        time.sleep(0.2)
        if (now := _counted(work)) != last:
            last, since = now, time.monotonic()


def _shards(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.parquet")) if ".pending" not in file.name]


def _ids(folder: Path) -> list[str]:
    return [
        id_ for f in _shards(folder) for id_ in pq.read_table(f, columns=["id"])["id"].to_pylist()
    ]


def _written(work: Path) -> int:
    return len(set(_ids(work / "out")))


if __name__ == "__main__":
    main()
