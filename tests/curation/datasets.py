"""Small real datasets, written through the contract, for tests to read."""

import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from aligncurate.output.folder import add_reasons, finish, shard_name, write_rejects
from alignshared import (
    Dataset,
    LevelEdges,
    Manifest,
    ModelInfo,
    Parent,
    Reject,
    ShardInfo,
    Storage,
)
from alignshared.levels import LevelAccumulator, levels_to_json
from alignshared.manifest import LEVELS_FILE
from alignshared.schema import scored_schema, with_level
from alignshared.shards import writing_shard

MODEL = ModelInfo("ViT-L-14-336", "openai", "ab" * 32, 336, "fp32")


def picture(seed: int, size: tuple[int, int] = (48, 32), kind: str = "PNG") -> bytes:
    """An encoded picture of one colour with a square of another in it."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 255, 3).tolist()))
    image.paste(tuple(rng.integers(0, 255, 3).tolist()), (4, 4, size[0] // 2, size[1] // 2))
    encoded = io.BytesIO()
    image.save(encoded, kind)
    return encoded.getvalue()


def cosines(count: int, seed: int = 1) -> list[float]:
    """Scores as CLIP gives them, rounded so that some are equal."""
    scores = np.random.default_rng(seed).normal(0.25, 0.05, count)
    return np.round(scores, 3).astype(np.float32).tolist()


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of every file under `folder`, by its path there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def replace_rows(dataset: Dataset, table: pa.Table) -> Dataset:
    """Put `table` in the place of the rows of `dataset`, as one shard."""
    for shard in dataset.manifest.shards:
        dataset.storage.delete(shard.file)
    infos = _write_shards(dataset.storage, table, 1)
    return finish(dataset.storage, replace(dataset.manifest, shards=infos, rows=table.num_rows))


def scored_rows(scores: Sequence[float | None], *, images: bool = True) -> list[dict[str, Any]]:
    """Rows of a scored dataset: `pair-0007`, a caption, a picture of its own."""
    return [
        {
            "id": f"pair-{i:04d}",
            "image": {
                "bytes": picture(i) if images else None,
                "path": f"{i:04d}.png",
            },
            "caption": f"caption number {i}",
            "conversations": None,
            "width": 48,
            "height": 32,
            "score": score,
            "caption_truncated": False,
        }
        for i, score in enumerate(scores)
    ]


def write_scored_dataset(
    folder: Path,
    scores: Sequence[float | None],
    *,
    shards: int = 3,
    images: bool = True,
    captions: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    rejects: Sequence[Reject] = (),
    parents: Sequence[Parent] = (),
) -> Dataset:
    """A scored dataset of one row per score, in `shards` shards of nearly equal size."""
    rows = scored_rows(scores, images=images)
    for name, values in (("caption", captions), ("id", ids)):
        for row, value in zip(rows, values or (), strict=False):
            row[name] = value
    storage = Storage(folder)
    infos = _write_shards(storage, pa.Table.from_pylist(rows, scored_schema()), shards)
    manifest = _manifest("score", infos, storage, rejects, parents)
    return finish(storage, Manifest(**manifest))


def write_levelled_dataset(
    folder: Path,
    scores: Sequence[float],
    levels: int = 4,
    *,
    shards: int = 3,
    parent: Dataset | None = None,
    **scored: Any,
) -> Dataset:
    """The dataset that `write_scored_dataset` writes with these arguments, sorted into levels.

    Edges are the k/N order statistics of the scores. `levels.json` is written as well.
    """
    rows = scored_rows(scores, images=scored.get("images", True))
    for name, key in (("caption", "captions"), ("id", "ids")):
        for row, value in zip(rows, scored.get(key) or (), strict=False):
            row[name] = value
    values = np.asarray(scores, dtype=np.float32)
    ordered = np.sort(values)
    cuts = [float(ordered[len(ordered) * k // levels]) for k in range(1, levels)]
    edges = LevelEdges(tuple(cuts), "quantile")
    assigned = edges.assign(values)
    for row, level in zip(rows, assigned.tolist(), strict=True):
        row["level"] = level
    storage = Storage(folder)
    table = pa.Table.from_pylist(rows, with_level(scored_schema()))
    infos = _write_shards(storage, table, shards)
    statistics = LevelAccumulator(levels)
    statistics.add(values, assigned)
    storage.write_json(LEVELS_FILE, levels_to_json(edges, statistics.statistics()))
    parents = [Parent(parent.location, parent.digest)] if parent else []
    fields = _manifest("bucket", infos, storage, scored.get("rejects", ()), parents)
    fields |= {
        "scheme": edges.scheme,
        "edges": cuts,
        "level_statistics": statistics.statistics(),
    }
    return finish(storage, Manifest(**fields))


def _write_shards(storage: Storage, table: pa.Table, shards: int) -> list[ShardInfo]:
    cuts = [table.num_rows * i // shards for i in range(shards + 1)]
    infos: list[ShardInfo] = []
    for i, (begin, end) in enumerate(pairwise(cuts)):
        with writing_shard(storage, shard_name(i), table.schema) as (writer, result):
            writer.write(table.slice(begin, end - begin))
        infos.append(result.info)
    return infos


def _manifest(
    stage: str,
    infos: list[ShardInfo],
    storage: Storage,
    rejects: Sequence[Reject],
    parents: Sequence[Parent],
) -> dict[str, Any]:
    written = write_rejects(storage, shard_name(0), list(rejects))
    return {
        "stage": stage,
        "rows": sum(info.rows for info in infos),
        "rejects": add_reasons([written.reasons]),
        "shards": infos,
        "reject_shards": [written.info] if written.info else [],
        "config": {"input": "demo", "batch_size": 32, "execution": {"workers": 2}},
        "parents": list(parents),
        "package": "aligncurate 0.1.0",
        "created": "2025-01-02T03:04:05+00:00",
        "model": MODEL,
    }
