"""Who is measured: the commands of each contender, its environment, and where its scores lie.

A contender that uses the cores as several processes has several commands, which run at once.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from peers.corpus import CACHE, Corpus
from peers.weights import make_transformers_folder, make_weights

from alignshared import Dataset

CORES = len(os.sched_getaffinity(0))
BATCH = 64

_HERE = Path(__file__).parent
_PEERS = {
    # It asks for pkg_resources, which later releases of setuptools do not bring.
    "clip-retrieval": ["clip-retrieval==2.45.0", "setuptools<70"],
    # Its own requirements leave out what its start and this operator import.
    "data-juicer": [
        "py-data-juicer==1.6.1", "aiohttp", "torch", "torchvision", "transformers<5",
        "opencv-python-headless", "ray",
    ],
}  # fmt: skip
_PACKAGES = {
    "clip-retrieval": ["clip-retrieval", "open-clip-torch", "torch"],
    "data-juicer": ["py-data-juicer", "transformers", "torch"],
}

Commands = list[list[str]]


@dataclass(frozen=True, slots=True)
class Contender:
    """`commands(corpus, model, output)` run at once, each with `threads` OpenMP threads (None: as
    the program itself decides); `scores(output)` are what they wrote, by id.
    """

    label: str
    commands: Callable[[Corpus, str, Path], Commands]
    scores: Callable[[Path], dict[str, float]]
    threads: int | None = None
    peer: str | None = None


def contenders() -> dict[str, Contender]:
    """All of them by the name that `--only` takes."""
    return {
        "ours": Contender("aligncurate, fp32", _ours("local", "fp32"), _dataset_scores),
        "ray": Contender("aligncurate on Ray, fp32", _ours("ray", "fp32"), _dataset_scores),
        "bf16": Contender("aligncurate, bf16", _ours("local", "bf16"), _dataset_scores),
        "forward": Contender("bare forward pass", _script("bare_forward.py"), _json_scores),
        "loop": Contender("plain open_clip loop", _script("plain_loop.py"), _json_scores, CORES),
        "clip-retrieval": Contender(
            f"clip-retrieval, one command, {CORES} threads",
            _clip_retrieval(1), _embedding_scores, CORES, "clip-retrieval",
        ),
        "clip-retrieval-split": Contender(
            f"clip-retrieval, {CORES} commands of one thread, tar files shared out",
            _clip_retrieval(CORES), _embedding_scores, 1, "clip-retrieval",
        ),
        "data-juicer": Contender(
            f"data-juicer, {CORES} processes", _data_juicer, _juicer_scores, None, "data-juicer"
        ),
    }  # fmt: skip


def make_environment(peer: str) -> dict[str, str]:
    """Install `peer` in an environment of its own unless it is there; versions of its packages."""
    folder = CACHE / peer
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        subprocess.run(["uv", "venv", "--python", "3.11", str(folder)], check=True)
        install = ["uv", "pip", "install", "--python", python, *_PEERS[peer]]
        subprocess.run(install, check=True)
    names = _PACKAGES[peer]
    ask = f"from importlib.metadata import version; print(*map(version, {names!r}))"
    answer = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    return dict(zip(names, answer.stdout.split(), strict=True))


def _arguments(corpus: Corpus, model: str, output: Path) -> list[str]:
    return [
        "--input", str(corpus.llava), "--image-root", str(corpus.images), "--output", str(output),
        "--model", model, "--weights", str(make_weights(model)),
    ]  # fmt: skip


def _ours(engine: str, precision: str) -> Callable[[Corpus, str, Path], Commands]:
    def commands(corpus: Corpus, model: str, output: Path) -> Commands:
        command = [sys.executable, str(_HERE / "aligncurate_score.py")]
        command += [*_arguments(corpus, model, output), "--engine", engine]
        command += ["--precision", precision]
        if corpus.count < 1024:  # start every actor, also where there is little to do
            command += ["--shard-rows", str(max(corpus.count // CORES, 1))]
        return [command]

    return commands


def _script(name: str) -> Callable[[Corpus, str, Path], Commands]:
    def commands(corpus: Corpus, model: str, output: Path) -> Commands:
        arguments = _arguments(corpus, model, output)
        return [[sys.executable, str(_HERE / name), *arguments, "--batch-size", str(BATCH)]]

    return commands


def _clip_retrieval(processes: int) -> Callable[[Corpus, str, Path], Commands]:
    def commands(corpus: Corpus, model: str, output: Path) -> Commands:
        return [
            [
                str(CACHE / "clip-retrieval" / "bin" / "clip-retrieval"), "inference",
                # No spaces: its argument parser reads a Python list.
                "--input_dataset", _braces(corpus.tars[first::processes]),
                "--output_folder", str(output / str(first)),
                "--input_format", "webdataset",
                "--clip_model", f"open_clip:{model}/{make_weights(model)}",
                "--use_jit", "False",
                "--batch_size", str(BATCH),
                "--num_prepro_workers", "1",
            ]
            for first in range(processes)
        ]  # fmt: skip

    return commands


def _braces(tars: Sequence[Path]) -> str:
    names = ",".join(path.stem for path in tars)
    return f"{tars[0].parent}/{{{names}}}.tar" if len(tars) > 1 else str(tars[0])


def _data_juicer(corpus: Corpus, model: str, output: Path) -> Commands:
    output.mkdir(parents=True)
    recipe = {
        "project_name": "benchmark",
        "dataset_path": str(corpus.juicer),
        "export_path": str(output / "scored.jsonl"),
        "work_dir": str(output),
        "np": CORES,
        "use_cache": False,
        "keep_stats_in_res_ds": True,
        "process": [
            {
                "image_text_similarity_filter": {
                    "hf_clip": str(make_transformers_folder(model)),
                    "min_score": -1.0,
                    "max_score": 1.0,
                }
            }
        ],
    }
    path = output / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return [[str(CACHE / "data-juicer" / "bin" / "dj-process"), "--config", str(path)]]


def _dataset_scores(output: Path) -> dict[str, float]:
    dataset = Dataset(str(output))
    names = [str(output / shard.file) for shard in dataset.manifest.shards]
    table = pq.ParquetDataset(names).read(["id", "score"])
    return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))


def _json_scores(output: Path) -> dict[str, float]:
    return json.loads((output / "scores.json").read_text(encoding="utf-8"))


def _embedding_scores(output: Path) -> dict[str, float]:
    scores: dict[str, float] = {}
    for metadata in sorted(output.glob("*/metadata/metadata_*.parquet")):
        part, number = metadata.parent.parent, metadata.stem.removeprefix("metadata_")
        images, texts = (
            np.load(part / f"{kind}_emb" / f"{kind}_emb_{number}.npy").astype(np.float32)
            for kind in ("img", "text")
        )
        ids = pq.read_table(metadata, columns=["image_path"])["image_path"].to_pylist()
        scores |= dict(zip(ids, np.einsum("nd,nd->n", images, texts).tolist(), strict=True))
    return scores


def _juicer_scores(output: Path) -> dict[str, float]:
    scores: dict[str, float] = {}
    with (output / "scored.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row: dict[str, Any] = json.loads(line)
            scores[row["id"]] = row["__dj__stats__"]["image_text_similarity"][0]
    return scores
