"""Two checkouts give the same results: scores, levels, losses, weights and answers, to the bit.

uv run python benchmarks/same_results.py OLD_CHECKOUT NEW_CHECKOUT [--work DIR]

Only command lines are called, each with its checkout's own environment, so how the code is laid out
does not matter. What a checkout gave is kept in DIR and read again by a later call.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SHORT = (
    "--set max_steps=20 --set optimizer.warmup_ratio=0 --set log.validate_every=10 "
    "--set log.validate_samples=16 --set checkpoint.every=10"
)
COMMANDS = [
    "aligncurate score --input demo --output score --embeddings",
    "aligncurate dedup --input score --output dedup",
    "aligncurate bucket --input score --output bucket --levels 8",
    "aligncurate filter --input bucket --output filter --levels 3-8 --min-size 20",
    "aligncurate filter --input bucket --output where --min-score 0.2 --where 'width > 10'",
    "aligncurate sample --input bucket --output sample --rows 300",
    "aligncurate export --input filter --output llava --format llava",
    "aligncurate export --input filter --output webdataset --format webdataset",
    "python pipelines/demo_data/build_instructions.py --output instructions",
    "aligncurate ingest --input instructions/instructions.json --output ingest",
    f"aligntrain run pretrain --data bucket --output pretrain {SHORT}",
    f"aligntrain run finetune --data ingest --output finetune --from pretrain {SHORT}",
    "aligntrain run pretrain --data bucket --output packed --set batch.packing=true "
    "--set max_steps=5",
    "aligntrain run pretrain --data bucket --output two --nproc 2 --set max_steps=5 "
    "--set zero_stage=2",
    "aligntrain run finetune --data ingest --output plain --from none --set model.mixing=none "
    "--set max_steps=2",
    "aligntrain eval finetune --benchmarks pope --data benchmarks --output eval --batch-size 4 "
    "--max-new-tokens 6",
    "aligntrain gate finetune --data ingest --output gate --limit 48 --sweep --sweep-limit 8",
    "aligntrain export plain exported --format llava",
]
DATASETS = ("score", "dedup", "bucket", "filter", "where", "sample", "ingest")
RUNS = ("pretrain", "finetune", "packed", "two", "plain")
CHANGING = {
    "elapsed_s", "step_s", "seconds", "time", "samples_per_s", "tokens_per_s", "data_wait_s",
    "waiting", "mfu", "memory", "peak_memory_gb", "date", "checkpoint", "folder", "version",
}  # fmt: skip
"""Keys of metrics and reports that tell of a run's speed or place and may differ."""
LOSSES = ("step", "loss", "loss_by_level", "validation_loss", "gradient_norm", "learning_rate")


def main() -> int:
    """Print the digests of both checkouts side by side; 1 if any differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "same-results")
    options = parser.parse_args()
    sides = [
        results(checkout.resolve(), options.work.resolve() / name)
        for name, checkout in (("old", options.old), ("new", options.new))
    ]
    names = sorted({name for side in sides for name in side})
    different = 0
    for name in names:
        old, new = (side.get(name, "absent") for side in sides)
        different += old != new
        verdict = "equal" if old == new else "NOT EQUAL"
        sys.stdout.write(f"{name:44} {old[:16]:18} {new[:16]:18} {verdict}\n")
    sys.stdout.write(f"{len(names) - different} of {len(names)} equal\n")
    return int(different > 0)


def results(checkout: Path, work: Path) -> dict[str, str]:
    """Digest of each result of `checkout` by name; made in `work` unless they are there."""
    kept = work / "digests.json"
    if not kept.exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for line in COMMANDS:
            if line.startswith("aligntrain eval"):
                write_questions(work)
            run(checkout, work, line)
        kept.write_text(json.dumps(dict(digests(work)), indent=2), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def run(checkout: Path, work: Path, line: str) -> None:
    """One command line of `checkout`, in `work`; the script ends where it fails."""
    sys.stderr.write(f"$ {line}\n")
    name, *arguments = shlex.split(line)
    if name == "python":
        arguments[0] = str(checkout / arguments[0])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run(
        [checkout / ".venv/bin" / name, *arguments],
        cwd=work, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{line}\n{done.stderr[-3000:]}")


def write_questions(work: Path) -> None:
    """POPE's columns with the demo's drawings, made of the instructions' own questions."""
    from datasets import Dataset, Image

    questions = json.loads((work / "instructions/questions.json").read_text(encoding="utf-8"))
    chosen = [question for question in questions if "image" in question][:24]
    rows = [
        {
            "question_id": str(i), "question": f"Is this a drawing, number {i}?",
            "answer": "yes" if i % 2 == 0 else "no",
            "category": ("random", "popular", "adversarial")[i % 3],
            "image": {
                "bytes": (work / "instructions" / question["image"]).read_bytes(), "path": None
            },
        }
        for i, question in enumerate(chosen)
    ]  # fmt: skip
    file = work / "benchmarks/pope/data/test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    data = Dataset.from_list(rows)
    data.cast_column("image", Image()).to_parquet(str(file))


def digests(work: Path) -> Iterator[tuple[str, str]]:
    """Digest of each result by name."""
    for name in DATASETS:
        yield from dataset_digests(work / name, name)
    for name in RUNS:
        lines = [json.loads(line) for line in (work / name / "metrics.jsonl").open()]
        kept = [{key: line[key] for key in LOSSES if key in line} for line in lines]
        yield f"{name}: losses of {len(lines)} steps", of_json(kept)
        for file in sorted((work / name / "export").rglob("*.safetensors")):
            yield f"{name}: {file.name}", of_bytes(file)
    for file in sorted((work / "exported").rglob("*.safetensors")):
        yield f"exported: {file.name}", of_bytes(file)
    for name in ("llava", "webdataset"):
        for file in sorted(path for path in (work / name).rglob("*") if path.is_file()):
            if file.suffix in {".json", ".tar", ".jsonl"}:
                yield f"{name}: {file.relative_to(work / name)}"[:44], of_bytes(file)
    for file in sorted((work / "eval").rglob("*.jsonl")):
        yield f"eval: {file.name}", of_json(still([json.loads(line) for line in file.open()]))
    yield "gate: gate.json", of_json(still(json.loads((work / "gate/gate.json").read_text())))


def dataset_digests(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Each column's values in the order of the shards, and what the manifest says of levels."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    facts = {
        key: manifest.get(key) for key in ("rows", "rejects", "edges", "level_statistics", "stage")
    }
    shards = manifest["shards"]
    facts["shards"] = [[shard[key] for key in ("file", "rows", "sha256")] for shard in shards]
    yield f"{name}: manifest", of_json(facts)
    columns: dict[str, Any] = {}
    for shard in shards:
        for column in (table := pq.read_table(folder / shard["file"])).column_names:
            digest = columns.setdefault(column, hashlib.sha256())
            digest.update(repr(table[column].to_pylist()).encode())
    for column, digest in columns.items():
        yield f"{name}: {column}", digest.hexdigest()


def still(value: Any) -> Any:
    """`value` without what tells of speed and place."""
    if isinstance(value, dict):
        return {key: still(part) for key, part in value.items() if key not in CHANGING}
    return [still(part) for part in value] if isinstance(value, list) else value


def of_json(value: Any) -> str:
    """SHA-256 of `value` as JSON; floats are written with all their digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_bytes(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
