"""Sorting millions of scores into 8 levels: aligncurate beside DuckDB's ntile and pandas.qcut.

Each does the same job in a process of its own: read a scored dataset (id, caption, score) from
Parquet, give each row its level, write all of it as Parquet with zstd at level 1. The numbers of
rows should lie far apart, for they also show whether memory grows with them.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recording import record, table

LEVELS = 8
ROWS_PER_SHARD = 1_000_000
MEMORY_DEMAND_MB = 1000
DISK_PER_ROW = 150
"""Bytes: the dataset, one output and what DuckDB spills."""

OURS, DUCKDB, PANDAS = "aligncurate bucket", "DuckDB ntile", "pandas.qcut"

_WORDS = """
amber arch autumn bakery balcony basket beach bicycle bird black blue boat book bottle
bread bridge brown cabin cake camera candle castle cat chair child church city cliff clock
cloud coast coffee cup dog door dress field fire fish flower forest garden glass green
harbour hat hill horse house island kitchen lake lamp market mountain music night old
orange paper park
"""


# Jobs: each runs in a process of its own, imports what it needs and then starts its clock


def write_dataset(folder: Path, rows: int) -> dict[str, Any]:
    """Write `folder`/scored through the contract; only the shards are linked in `folder`/shards."""
    from aligncurate.output.folder import finish, provenance, shard_name
    from alignshared import Manifest, Storage
    from alignshared.shards import writing_shard

    storage = Storage(folder / "scored")
    links = folder / "shards"
    links.mkdir()
    infos: list[Any] = []
    for begin in range(0, rows, ROWS_PER_SHARD):
        pairs = scored_pairs(begin, min(ROWS_PER_SHARD, rows - begin))
        name = shard_name(len(infos))
        with writing_shard(storage, name, pairs.schema) as (writer, result):
            writer.write(pairs)
        infos.append(result.info)
        (links / name).symlink_to(folder / "scored" / name)
    manifest = Manifest(
        stage="score",
        rows=rows,
        rejects={},
        shards=infos,
        reject_shards=[],
        config={"input": "made up"},
        parents=[],
        **provenance(),
    )
    finish(storage, manifest)
    return {"bytes": sum(info.bytes for info in infos)}


def scored_pairs(begin: int, count: int) -> Any:
    """Rows `begin` to `begin + count` as an Arrow table: ids as of files, captions of four words,
    and scores as CLIP spreads them.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute

    from alignshared.schema import with_features

    pc: Any = pyarrow.compute  # its functions are made at run time, unknown to type checkers
    rng = np.random.default_rng(begin)
    ids = pc.utf8_lpad(pa.array(np.arange(begin, begin + count)).cast(pa.string()), 9, "0")
    known = pa.array(_WORDS.split())
    words = [known.take(pa.array(rng.integers(0, len(known), count))) for _ in range(4)]
    captions = pc.binary_join_element_wise("a photo of", *words, " ")
    scores = np.clip(rng.normal(0.25, 0.05, count), -1, 1).astype(np.float32)
    pairs = pa.table({"id": ids, "caption": captions, "score": scores})
    return pairs.cast(with_features(pairs.schema))


def run_ours(folder: Path, memory_gb: float) -> dict[str, Any]:
    """The library, on a thread per core; it needs no limit."""
    from aligncurate import bucket

    began = time.perf_counter()
    dataset = bucket(folder / "scored", folder / "output", levels=LEVELS)
    seconds = time.perf_counter() - began
    told = dataset.manifest.level_statistics or []
    return {
        "seconds": seconds,
        "edges": dataset.manifest.edges,
        "counts": [level.count for level in told],
    }


def run_duckdb(folder: Path, memory_gb: float) -> dict[str, Any]:
    """One statement, on all cores; what does not fit in four fifths of the memory is spilled."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {_cores()}")
    connection.execute(f"SET memory_limit = '{memory_gb * 0.8:.1f}GB'")
    connection.execute(f"SET temp_directory = '{folder / 'spilled'}'")
    (folder / "output").mkdir()
    statement = (
        f"COPY (SELECT *, ntile({LEVELS}) OVER (ORDER BY score) AS level "
        f"FROM read_parquet('{folder}/shards/*.parquet')) "
        f"TO '{folder}/output/levelled.parquet' "
        "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
    )
    began = time.perf_counter()
    try:
        connection.execute(statement)
    except duckdb.OutOfMemoryException as error:
        raise MemoryError from error
    return {"seconds": time.perf_counter() - began}


def run_pandas(folder: Path, memory_gb: float) -> dict[str, Any]:
    """As the manual of pandas does it; MemoryError past the limit, before the machine suffers."""
    import pandas as pd

    limit = int(memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    (folder / "output").mkdir()
    began = time.perf_counter()
    frame = pd.read_parquet(folder / "shards")
    from_zero: Any = pd.qcut(frame["score"], LEVELS, labels=False)
    frame["level"] = (from_zero + 1).astype("int8")
    frame.to_parquet(
        folder / "output" / "levelled.parquet", index=False, compression="zstd", compression_level=1
    )
    return {"seconds": time.perf_counter() - began}


def check_levels(folder: Path) -> dict[str, Any]:
    """What the edges and the counts should be, from numpy, and the counts found in the output."""
    import numpy as np
    import pyarrow.parquet as pq

    scored = [
        pq.read_table(shard, columns=["score"]).column("score").to_numpy()
        for shard in sorted((folder / "shards").iterdir())
    ]
    ordered = np.concatenate(scored)
    del scored
    ordered.sort()
    edges = ordered[[k * len(ordered) // LEVELS for k in range(1, LEVELS)]]
    bounds = [0, *np.searchsorted(ordered, edges, side="left").tolist(), len(ordered)]
    found = np.zeros(LEVELS + 1, dtype=np.int64)
    for file in sorted((folder / "output").glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=["level"]):
                levels = batch.column("level").to_numpy().astype(np.int64)
                found += np.bincount(levels, minlength=LEVELS + 1)
    return {
        "edges": edges.tolist(),
        "counts": np.diff(bounds).tolist(),
        "found": found[1:].tolist(),
    }


RUNS: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    OURS: run_ours,
    DUCKDB: run_duckdb,
    PANDAS: run_pandas,
}


def do_job(job: str, folder: Path, rows: int, memory_gb: float) -> None:
    """Do `job` in this process and write its result, with the peak memory, as a line of JSON."""
    # Should memory run out after all, this process is what the system ends.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        if job == "write":
            result = write_dataset(folder, rows)
        elif job == "check":
            result = check_levels(folder)
        else:
            result = RUNS[job](folder, memory_gb)
    except MemoryError:
        result = {"failed": f"needs more than {memory_gb:g} GB"}
    result |= {"peak_mb": peak_mb(), "cpu_s": round(time.process_time(), 2)}
    sys.stdout.write(json.dumps(result) + "\n")


def peak_mb() -> float:
    """Most memory (RSS, 10^6 bytes) that this process, or any that it started, ever held.

    VmHWM and not getrusage for this process: what getrusage says begins at the parent's size.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    own = int(status.partition("VmHWM:")[2].split()[0])
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(max(own, started) * 1024 / 1e6, 1)


# The process that starts the jobs


def in_own_process(job: str, folder: Path, rows: int, memory_gb: float) -> dict[str, Any]:
    """The result of `job`, done in a fresh process.

    Raises:
        subprocess.CalledProcessError: it failed, and not for want of memory.
    """
    options = ["--job", job, "--folder", str(folder), "--memory-gb", str(memory_gb)]
    command = [sys.executable, __file__, "--rows", str(rows), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == -9:
        return {"failed": "ended by the system for want of memory"}
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def measure(rows: int, repeats: int, memory_gb: float, parent: Path) -> dict[str, Any]:
    """All three over a dataset of `rows` rows, `repeats` times in turn; leaves no file behind.

    Raises:
        SystemExit: the disk is too small, or our levels are not those of numpy.
    """
    free = shutil.disk_usage(parent).free
    if free < rows * DISK_PER_ROW:
        sys.exit(f"{rows:,} rows need {rows * DISK_PER_ROW:,} bytes in {parent}; {free:,} are free")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        folder = Path(temporary)
        say(f"{rows:,} rows: writing the dataset")
        written = in_own_process("write", folder, rows, memory_gb)
        for turn in range(repeats):
            for name, results in runs.items():
                if results and "failed" in results[0]:
                    continue
                results.append(one_run(name, folder, rows, memory_gb, check=turn == 0))
    return {"rows": rows, "input_bytes": written["bytes"], "runs": runs}


def one_run(name: str, folder: Path, rows: int, memory_gb: float, *, check: bool) -> dict[str, Any]:
    """One run of `name` on a warm page cache; its output is looked at and removed."""
    os.sync()
    for shard in (folder / "shards").iterdir():
        with shard.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass
    result = in_own_process(name, folder, rows, memory_gb)
    say(f"{rows:,} rows, {name}: {result.get('failed') or round(result['seconds'], 2)}")
    output = folder / "output"
    if "failed" not in result:
        result["output_bytes"] = sum(file.stat().st_size for file in output.glob("*.parquet"))
    if check and "failed" not in result:
        expected = in_own_process("check", folder, rows, memory_gb)
        result["found"] = expected["found"]
        if name == OURS:
            refuse_other_levels(result, expected)
    for left in (output, folder / "spilled"):
        shutil.rmtree(left, ignore_errors=True)
    return result


def refuse_other_levels(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise SystemExit unless our edges and counts, told and written, are those of numpy."""
    if ours["edges"] != expected["edges"]:
        sys.exit(f"edges {ours['edges']} are not numpy's {expected['edges']}")
    for counts in (ours["counts"], ours["found"]):
        if counts != expected["counts"]:
            sys.exit(f"level counts {counts} are not numpy's {expected['counts']}")


def summary(results: Sequence[dict[str, Any]]) -> str:
    """The page's tables and what was demanded."""
    lines: list[list[object]] = []
    for result in results:
        for name, runs in result["runs"].items():
            lines.append([f"{result['rows']:,}", name, *_cells(runs)])
    header = ["rows", "by", "seconds", "least", "greatest", "CPU s", "peak MB", "output MB"]
    peaks = [max(run["peak_mb"] for run in result["runs"][OURS]) for result in results]
    held = ", ".join(
        f"{peak:,.0f} MB at {result['rows']:,} rows"
        for result, peak in zip(results, peaks, strict=True)
    )
    verdicts = [_beaten(result) for result in results]
    return (
        f"Read a scored dataset, give each row one of {LEVELS} levels, write it: median seconds, "
        "imports apart, files in the page cache, each run in a process of its own, in turn. CPU "
        "seconds are those of the whole process, imports and all; peak is the largest resident "
        "size of any process. Our edges and level counts, as told and as written, equal those of a "
        "full sort by numpy. Ours also writes the SHA-256 of each shard, keeps the order of the "
        "rows, and leaves scores uncompressed; ntile parts equal scores.\n\n"
        f"{table(header, lines)}\n\n"
        f"Peak of `{OURS}`: {held} (demand: at most {MEMORY_DEMAND_MB:,} MB). "
        f"{' '.join(verdicts)}"
    )


def _cells(runs: list[dict[str, Any]]) -> list[str]:
    if "failed" in runs[0]:
        return [runs[0]["failed"], *[""] * 5]
    times = [run["seconds"] for run in runs]
    return [
        f"{statistics.median(times):.2f}",
        f"{min(times):.2f}",
        f"{max(times):.2f}",
        f"{statistics.median(run['cpu_s'] for run in runs):.1f}",
        f"{max(run['peak_mb'] for run in runs):,.0f}",
        f"{runs[0]['output_bytes'] / 1e6:,.0f}",
    ]


def _beaten(result: dict[str, Any]) -> str:
    """How many times as fast as each peer ours was, in pairs of runs of the same turn."""
    ours = [run["seconds"] for run in result["runs"][OURS]]
    parts: list[str] = []
    for name in (DUCKDB, PANDAS):
        runs = result["runs"][name]
        if "failed" not in runs[0]:
            pairs = zip(runs, ours, strict=True)
            ratio = statistics.median(run["seconds"] / mine for run, mine in pairs)
            parts.append(f"{ratio:.2f} times as fast as {name}")
    told = " and ".join(parts) or "alone in finishing"
    return f"At {result['rows']:,} rows it was {told}."


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")


def _whole(text: str) -> int:
    return int(float(text))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows",
        type=_whole,
        nargs="+",
        default=[10**7, 5 * 10**7, 10**8],
        help="sizes (default: 10e6 50e6 100e6)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--memory-gb", type=float, default=18.0, help="what the peers may use")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        do_job(options.job, options.folder, options.rows[0], options.memory_gb)
        return
    results = [
        measure(rows, options.repeats, options.memory_gb, options.folder) for rows in options.rows
    ]
    report = summary(results)
    title = "Levels of millions of scores"
    record("bucket_scale", title, ["pyarrow", "numpy", "duckdb", "pandas"], results, report)
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main()
