"""`aligncurate dedup` on a million embeddings, beside a comparison of a sample with all of them.

The embeddings are made: cosines as CLIP's have them, crowds of like rows, planted near duplicates
and as many that are just not near enough. The command runs in a process of its own, from Parquet to
Parquet; 8 bytes stand in place of each picture.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from recording import record, table

from aligncurate.core.vectors import unit_rows
from aligncurate.output.folder import finish, provenance, shard_name
from alignshared import Dataset, Manifest, ShardInfo, Storage
from alignshared.schema import IMAGE_TYPE, embedding_type, with_features
from alignshared.shards import writing_shard

PACKAGES = ["aligncurate", "faiss-cpu", "numpy", "pyarrow"]
THRESHOLD = 0.95
SHARD_ROWS = 62_500
ROWS_PER_CROWD = 50
PLANTED, HARD = 0.05, 0.05
SAMPLE = 2048
_BLOCK = 32_768

Units = npt.NDArray[np.float32]


def make_rows(rng: np.random.Generator, count: int, dim: int) -> npt.NDArray[np.float16]:
    """Unit vectors [count, dim]: a part that all share, a part that a crowd shares, noise."""
    common = _units(rng, 1, dim)
    crowds = _units(rng, max(count // ROWS_PER_CROWD, 1), dim)
    rows = np.empty((count, dim), np.float16)
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        crowd = crowds[rng.integers(0, len(crowds), size)]
        made = 0.6 * common + 0.6 * crowd + 0.53 * _units(rng, size, dim)
        rows[begin : begin + size] = unit_rows(made)
    return rows


def plant(
    rng: np.random.Generator, rows: npt.NDArray[np.float16], share: float, low: float, high: float
) -> None:
    """Make a random `share` of `rows` copies of others, at a cosine between `low` and `high`."""
    order = rng.permutation(len(rows))
    count = int(share * len(rows))
    targets, sources = order[:count], order[count : 2 * count]
    for begin in range(0, count, _BLOCK):
        source = unit_rows(rows[sources[begin : begin + _BLOCK]])
        cosine = rng.uniform(low, high, (len(source), 1)).astype(np.float32)
        aside = _units(rng, *source.shape)
        aside -= (aside * source).sum(1, keepdims=True) * source
        copy = cosine * source + (1 - cosine**2) ** 0.5 * unit_rows(aside)
        rows[targets[begin : begin + _BLOCK]] = copy


def _units(rng: np.random.Generator, count: int, dim: int) -> Units:
    return unit_rows(rng.standard_normal((count, dim), dtype=np.float32))


def write_dataset(folder: Path, rows: npt.NDArray[np.float16], scores: Units) -> None:
    """`rows` as a scored dataset, with 8 bytes of its own in place of each picture."""
    storage, dim = Storage(folder), rows.shape[1]
    fields = [
        ("id", pa.string()),
        ("image", IMAGE_TYPE),
        ("score", pa.float32()),
        ("image_embedding", embedding_type(dim)),
    ]
    schema = with_features(pa.schema(fields))
    shards: list[ShardInfo] = []
    for begin in range(0, len(rows), SHARD_ROWS):
        some = rows[begin : begin + SHARD_ROWS]
        ids = [f"{i:08d}" for i in range(begin, begin + len(some))]
        columns = [
            pa.array(ids),
            pa.array([{"bytes": id_.encode(), "path": None} for id_ in ids], IMAGE_TYPE),
            pa.array(scores[begin : begin + len(some)]),
            pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), dim),
        ]
        with writing_shard(storage, shard_name(len(shards)), schema) as (writer, result):
            writer.write(pa.table(columns, schema=schema))
        shards.append(result.info)
    finish(storage, Manifest(
        stage="score", rows=len(rows), rejects={}, shards=shards, reject_shards=[], config={},
        parents=[], **provenance(),
    ))  # fmt: skip


def run_dedup(source: Path, output: Path) -> dict[str, Any]:
    """Seconds, and peak MB: of resident pages, and of those that no file stands behind."""
    command = [
        str(Path(sys.executable).with_name("aligncurate")), "dedup", "--input", str(source),
        "--output", str(output), "--threshold", str(THRESHOLD),
    ]  # fmt: skip
    began = time.monotonic()
    process = subprocess.Popen(command)
    peaks, done = {"VmHWM": 0, "RssAnon": 0}, Event()
    watcher = Thread(target=_watch, args=(process.pid, peaks, done))
    watcher.start()
    code = process.wait()
    seconds = time.monotonic() - began
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{command} ended with {code}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_resident_mb": peaks["VmHWM"] / 1000,
        "peak_own_mb": peaks["RssAnon"] / 1000,
    }


def _watch(pid: int, peaks: dict[str, int], done: Event) -> None:
    while not done.wait(0.2):
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]))


def compare_with_all(
    rng: np.random.Generator, rows: npt.NDArray[np.float16], kept: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Near pairs of a random sample, found by comparing it with all, and which of them are left."""
    sample = rng.choice(len(rows), min(SAMPLE, len(rows)), replace=False)
    queries = unit_rows(rows[sample])
    began = time.monotonic()
    pairs = left = 0
    for begin in range(0, len(rows), _BLOCK):
        cosines = queries @ unit_rows(rows[begin : begin + _BLOCK]).T
        first, second = np.nonzero(cosines >= THRESHOLD)
        first, second = sample[first], second + begin
        others = first != second
        first, second = first[others], second[others]
        pairs += len(first)
        left += int((kept[first] & kept[second]).sum())
    seconds = time.monotonic() - began
    return {
        "rows": len(sample),
        "pairs": pairs,
        "pairs_left": left,
        "recall": 1 - left / pairs,
        "seconds": seconds,
        "seconds_for_all": seconds / len(sample) * len(rows),
    }


def check_duplicates(output: Path, rows: npt.NDArray[np.float16]) -> tuple[Any, float, float]:
    """Which rows are kept; the least cosine of a row that went with the one that stayed; the
    largest error of the cosines told.
    """
    kept = np.ones(len(rows), np.bool_)
    least, error = 1.0, 0.0
    for path in sorted((output / "duplicates").iterdir()):
        told = pq.read_table(path)
        gone, stays = (
            np.array(told[name].to_pylist()).astype(np.int64) for name in ("id", "kept_id")
        )
        kept[gone] = False
        cosines = (unit_rows(rows[gone]) * unit_rows(rows[stays])).sum(1)
        least = min(least, float(cosines.min()))
        error = max(error, float(np.abs(cosines - told["cosine"].to_numpy()).max()))
    return kept, least, error


def measure(count: int, dim: int) -> dict[str, Any]:
    """All figures for `count` rows of `dim` values."""
    rng = np.random.default_rng(11)
    rows = make_rows(rng, count, dim)
    plant(rng, rows, PLANTED, THRESHOLD, 0.999)
    plant(rng, rows, HARD, 0.9, THRESHOLD)
    with tempfile.TemporaryDirectory(prefix="dedup-million-") as folder:
        source, output = Path(folder, "score"), Path(folder, "dedup")
        write_dataset(source, rows, rng.normal(0.25, 0.05, count).astype(np.float32))
        waiting = Path("/proc/loadavg").read_text(encoding="utf-8").split()[0]
        run = run_dedup(source, output)
        manifest = Dataset(output).manifest
        assert manifest.duplicates is not None
        kept, least, error = check_duplicates(output, rows)
    found = manifest.duplicates
    return {
        "rows": count,
        "dim": dim,
        "threshold": THRESHOLD,
        "load_before": float(waiting),
        "run": run,
        "search": found.search,
        "near": found.near,
        "kept": manifest.rows,
        "least_cosine_of_a_duplicate": least,
        "largest_error_of_a_cosine": error,
        "sample": compare_with_all(rng, rows, kept),
    }


def report(results: dict[str, Any]) -> str:
    """The page."""
    run, search, sample = results["run"], results["search"], results["sample"]
    rows = [
        ["seconds, from Parquet to Parquet, start-up and all", f"{run['seconds']:,.0f}"],
        ["CPU seconds", f"{run['cpu_seconds']:,.0f}"],
        ["peak of resident memory, with mapped embeddings, MB", f"{run['peak_resident_mb']:,.0f}"],
        ["peak of the process's own memory, MB", f"{run['peak_own_mb']:,.0f}"],
        ["cells, and how many of them are looked into", f"{search['cells']:,}, {search['probes']}"]
        if search["method"] == "ivf" else ["search", "exact"],
        ["recall as the run measured it", f"{search['recall']:.4f}"],
        ["near duplicates left out", f"{results['near']:,}"],
        ["their least cosine with the row that stayed",
         f"{results['least_cosine_of_a_duplicate']:.4f}"],
        [f"near pairs of {sample['rows']:,} random rows, compared with all",
         f"{sample['pairs']:,}"],
        ["of these pairs, both rows still there", f"{sample['pairs_left']:,}"],
        ["recall beside that sample", f"{sample['recall']:.4f}"],
        ["seconds to compare all rows with all at the sample's rate",
         f"{sample['seconds_for_all']:,.0f}"],
    ]  # fmt: skip
    setting = (
        f"{results['rows']:,} embeddings of {results['dim']} dimensions, float16, threshold "
        f"{results['threshold']}. Each is the unit sum of a part that all share (0.6), a part that "
        f"{ROWS_PER_CROWD} on average share (0.6) and noise (0.53). Then {PLANTED:.0%} of the rows "
        f"were made copies of others, turned away to a cosine between {THRESHOLD} and 0.999, and "
        f"{HARD:.0%} copies at 0.90 to {THRESHOLD}, which must stay. In place of a picture stand 8 "
        "bytes. The machine did other work besides (its load before the run was "
        f"{results['load_before']:.1f}), so the CPU seconds tell more than the seconds."
    )
    return f"{table(['', 'measured'], rows)}\n\n{setting}"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=lambda text: int(float(text)), default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    given = parser.parse_args()
    results = measure(given.rows, given.dim)
    page = report(results)
    title = f"Near duplicates among {given.rows:,} embeddings"
    record("dedup_million", title, PACKAGES, results, page)
    sys.stdout.write(json.dumps(results, indent=1) + "\n" + page + "\n")


if __name__ == "__main__":
    main()
