"""Choosing and exporting pairs with pictures: whether memory grows with the rows.

Each job runs in a process of its own over the same dataset, whose pictures are a small JPEG with
random bytes after it: filter by score and by SQL, sample, and the exports. Beside filter, DuckDB
copies the same rows by the same condition into Parquet.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recording import record, table

ROWS_PER_SHARD = 1024
LEVELS = 8
MEMORY_DEMAND_MB = 1000
CUT = 0.25
"""About half of the scores lie above it."""

JOBS = ("filter", "filter --where", "sample", "export webdataset", "export hf", "DuckDB COPY")


def write_dataset(folder: Path, rows: int, picture_bytes: int) -> None:
    """A levelled dataset of `rows` pairs in `folder`/bucket."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from aligncurate import bucket
    from aligncurate.output.folder import finish, provenance, shard_name
    from alignshared import Manifest, Storage
    from alignshared.schema import scored_schema
    from alignshared.shards import writing_shard

    picture = io.BytesIO()
    Image.new("RGB", (336, 336)).save(picture, "JPEG")
    head = picture.getvalue()[:picture_bytes]
    storage, infos = Storage(folder / "score"), []
    schema = scored_schema()
    for index, begin in enumerate(range(0, rows, ROWS_PER_SHARD)):
        rng = np.random.default_rng(begin)
        count = min(ROWS_PER_SHARD, rows - begin)
        pairs = [
            {
                "id": f"{begin + i:09d}",
                "image": {
                    "bytes": head + rng.bytes(picture_bytes - len(head)),
                    "path": f"{begin + i}.jpg",
                },
                "caption": f"a photo of number {begin + i}",
                "width": 336,
                "height": 336,
                "score": float(np.clip(rng.normal(CUT, 0.05), -1, 1)),
                "caption_truncated": False,
            }
            for i in range(count)
        ]
        with writing_shard(storage, shard_name(index), schema) as (writer, result):
            writer.write(pa.Table.from_pylist(pairs, schema))
        infos.append(result.info)
    manifest = Manifest(
        stage="score", rows=rows, rejects={}, shards=infos, reject_shards=[],
        config={"input": "made up"}, parents=[], **provenance(),
    )  # fmt: skip
    finish(storage, manifest)
    bucket(folder / "score", folder / "bucket", levels=LEVELS)
    shutil.rmtree(folder / "score")


def run(job: str, folder: Path, rows: int) -> dict[str, Any]:
    """One job over `folder`/bucket: rows written, peak memory of this process."""
    source, output = folder / "bucket", folder / "output"
    written = (
        _duckdb(source, output) if job.startswith("DuckDB") else _ours(job, source, output, rows)
    )
    # Not ru_maxrss, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    peak = int(status.split()[0]) / 1024
    return {"rows": written, "peak_mb": peak}


def _ours(job: str, source: Path, output: Path, rows: int) -> int:
    from aligncurate import Conditions, export, filter, sample

    if job == "filter":
        return filter(Conditions(min_score=CUT), source, output).manifest.rows
    if job == "filter --where":
        wanted = Conditions(where=f"score >= {CUT} AND caption LIKE '%number%'")
        return filter(wanted, source, output).manifest.rows
    if job == "sample":
        return sample(source, output, rows=rows // 10).manifest.rows
    return export(source, output, format="hf" if job.endswith("hf") else "webdataset").rows


def _duckdb(source: Path, output: Path) -> int:
    import duckdb

    output.mkdir()
    statement = (
        f"COPY (SELECT * FROM read_parquet('{source}/shard-*.parquet') WHERE score >= {CUT}) TO "
        f"'{output}/kept.parquet' (FORMAT parquet, COMPRESSION uncompressed, ROW_GROUP_SIZE 2048)"
    )
    with duckdb.connect() as connection:
        ((rows,),) = connection.execute(statement).fetchall()
    return rows


def measure(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Every job once, each in a fresh process."""
    found: list[dict[str, Any]] = []
    for job in JOBS:
        command = [
            sys.executable,
            __file__,
            "--job",
            job,
            "--folder",
            str(folder),
            "--rows",
            str(rows),
        ]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append({"job": job, "rows_in": rows} | json.loads(told.splitlines()[-1]))
        shutil.rmtree(folder / "output")
    return found


def main() -> None:
    """Measure, and write the result down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, nargs="+", default=[20e3, 80e3])
    parser.add_argument("--picture-bytes", type=int, default=20_000)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(rows) for rows in options.rows]
    if options.job:
        sys.stdout.write(json.dumps(run(options.job, options.folder, sizes[0])) + "\n")
        return
    found: list[dict[str, Any]] = []
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="rows-") as folder:
            write_dataset(Path(folder), rows, options.picture_bytes)
            found += measure(Path(folder), rows)
    _report(found, options.picture_bytes)


def _report(found: list[dict[str, Any]], picture_bytes: int) -> None:
    lines = [
        (
            f["job"],
            f"{f['rows_in']:,}",
            f"{f['rows']:,}",
            f"{f['peak_mb']:,.0f}",
        )
        for f in found
    ]
    ours = [f for f in found if not f["job"].startswith("DuckDB")]
    report = (
        f"Pictures of {picture_bytes:,} bytes in shards of {ROWS_PER_SHARD:,} pairs. "
        "Peak is the greatest resident size of the job's process. DuckDB's copy has the rows of "
        "`filter`, without order, digests or lineage.\n\n"
        + table(["job", "pairs in", "pairs out", "peak MB"], lines)
        + f"\n\nGreatest peak of ours: {max(f['peak_mb'] for f in ours):,.0f} MB (demand: at most "
        f"{MEMORY_DEMAND_MB:,} MB at any number of rows)."
    )
    title = "Pairs with pictures: filter, sample and export"
    record("rows_scale", title, ["pyarrow", "numpy", "duckdb"], found, report)


if __name__ == "__main__":
    main()
