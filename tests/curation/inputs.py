"""Inputs to score: LLaVA JSON with pictures beside it, and Parquet."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aligncurate.sources import RawBatch, Source
from alignshared import Dataset, Reject, Storage
from tests.curation.pictures import photo


def record(id_: str, image: str | None = None, caption: str | None = None) -> dict[str, Any]:
    """A record as LLaVA-Pretrain has them."""
    return {
        "id": id_,
        "image": image or f"{id_}.jpg",
        "conversations": [
            {"from": "human", "value": "Describe the picture.\n<image>"},
            {"from": "gpt", "value": caption or f"a picture of {id_}"},
        ],
    }


def write_llava(folder: Path, records: Any, pictures: dict[str, bytes]) -> Path:
    """`folder/pairs.json` with `records`, and `folder/images` with `pictures`; gives the JSON."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(data)
    path = folder / "pairs.json"
    path.write_text(json.dumps(records))
    return path


def good_pairs(folder: Path, count: int = 12) -> Path:
    """LLaVA JSON of `count` pairs that can all be scored."""
    names = [f"good{i}" for i in range(count)]
    pictures = {f"{name}.jpg": photo(i) for i, name in enumerate(names)}
    return write_llava(folder, [record(name) for name in names], pictures)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    """A Parquet file of `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def rows_of(dataset: Dataset) -> list[dict[str, Any]]:
    """All rows of `dataset`."""
    return [row for batch in dataset.batches() for row in batch.to_pylist()]


def rejects_of(dataset: Dataset) -> dict[str, str]:
    """Ids and reasons of the rejects of `dataset`."""
    return {row["id"]: row["reason"] for row in reject_rows(dataset)}


def reject_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """All rejects of `dataset`."""
    files = [f"{dataset.location}/{shard.file}" for shard in dataset.manifest.reject_shards]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def ids_of(dataset: Dataset) -> Sequence[str]:
    """Ids of the rows, in order."""
    return [row["id"] for row in rows_of(dataset)]


def score_good_pairs(
    folder: Path, model: str | Sequence[str], count: int = 12, **options: Any
) -> Dataset:
    """`folder/out`: `good_pairs` of `folder/in`, scored in this process unless `options` say
    otherwise.
    """
    from aligncurate import Execution, score

    defaults: dict[str, Any] = {
        "output": folder / "out",
        "image_root": str(folder / "in" / "images"),
        "execution": Execution(engine="local", workers=1),
    }
    return score(good_pairs(folder / "in", count), model=model, **(defaults | options))


def read(source: Source, work: Path, shard_rows: int | None = None) -> list[RawBatch]:
    """All batches of `source`, which may write under `work`."""
    units = source.plan(Storage(work / ".run"), shard_rows)
    return [batch for unit in units for batch in source.read(unit, 3)]


def rows(source: Source, work: Path) -> list[dict[str, Any]]:
    """The usable rows of `source`."""
    return [row for batch in read(source, work) for row in batch.table.to_pylist()]


def rejects(source: Source, work: Path) -> list[Reject]:
    """The rejects of `source`."""
    return [reject for batch in read(source, work) for reject in batch.rejects]
