"""search: pairs whose embeddings are nearest to a text or an image."""

import math
import os
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import numpy as np

from aligncurate.checks.manifest import open_dataset
from aligncurate.core.vectors import TopK, Units, embedding_rows, unit_rows
from aligncurate.output.folder import input_of
from aligncurate.output.shards import open_matching
from aligncurate.reporting.examples import read_rows
from aligncurate.reporting.sheet import Hit, SearchResult, render_sheet
from aligncurate.settings import Location, Over, called_with
from aligncurate.stages.settings import SearchSettings
from aligncurate.threads import available_cores, map_ordered
from alignshared import ContractError, Dataset, InputError, ModelInfo, ShardInfo, atomic
from alignshared.images import ImageError, decode_image
from alignshared.schema import EMBEDDING_COLUMNS, LEVEL_COLUMN, require_columns

_COLUMN_OF = dict(zip(get_args(Over), EMBEDDING_COLUMNS, strict=True))
_BATCH_ROWS = 4096
_SHOWN = ("id", "caption", "score", LEVEL_COLUMN, "image")


@called_with(SearchSettings)
def search(settings: SearchSettings) -> SearchResult:
    """Find the `top` pairs of `input` nearest to `text` or to the image in the file `image`.

    The query is embedded with the CLIP that scored the dataset, whose `weights`, if moved, are a
    file or the folder of a model given as one, and compared with every pair's embedding. Ties go
    to the earlier rows. Memory is constant.

    Arguments are the fields of `SearchSettings`, which are also the command's options;
    `on_progress` is called with the number of pairs compared.

    Raises:
        InputError: the query, the dataset or the weights are unusable.
    """
    dataset = input_of(settings, open_dataset, "there is nothing to find in it")
    model = _check_dataset(dataset, settings.over)
    query, image = _embed(model, settings)
    best = _compare(dataset, query, settings)
    return SearchResult(
        dataset=dataset.location,
        rows=dataset.manifest.rows,
        model=model,
        over=settings.over,
        query=settings.text or os.fspath(settings.image or ""),
        image=image,
        hits=_hits(dataset, best),
    )


def _check_dataset(dataset: Dataset, over: Over) -> ModelInfo:
    require_columns(dataset.schema, ("id",), dataset.location)
    if _COLUMN_OF[over] not in dataset.schema.names:
        raise ContractError(
            f"{dataset.location} has no embeddings of its {over} to search; score the pairs again "
            "with --embeddings."
        )
    if dataset.manifest.model is None:
        raise ContractError(
            f"the manifest of {dataset.location} does not say which CLIP made its embeddings; "
            "score the pairs again."
        )
    return dataset.manifest.model


def _embed(info: ModelInfo, settings: SearchSettings) -> tuple[Units, bytes | None]:
    """Return the unit embedding [d] of the query, and the image bytes."""
    from aligncurate.core.clip import ClipModel, pixel_view, resolve_recorded

    image = settings.image
    data = None if image is None else _read_image(image)
    resolved = resolve_recorded(info, settings.weights)
    clip = ClipModel(
        resolved, "fp32", long_captions="mean" if info.long_captions == "mean" else "truncate"
    )
    if data is None:
        return clip.embed_captions([settings.text or ""])[0][0], None
    try:
        pixels = pixel_view(resolved.preprocess)(decode_image(data))
    except ImageError as error:
        raise InputError(
            f"{os.fspath(image or '')} cannot be shown to the model: {error.detail}; give another "
            "image."
        ) from error
    return clip.embed_images(pixels[None])[0], data


def _read_image(image: Location) -> bytes:
    try:
        return Path(image).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"--image {os.fspath(image)} cannot be read: {reason}; give the file of an image."
        ) from error


def _compare(dataset: Dataset, query: Units, settings: SearchSettings) -> TopK:
    shards, schema, column = dataset.manifest.shards, dataset.schema, _COLUMN_OF[settings.over]
    values = schema.field(column).type.list_size
    if values != len(query):
        raise ContractError(
            f"the embeddings in {dataset.location} have {values} values and those of its CLIP "
            f"{len(query)}; score the pairs again."
        )

    def compare(work: tuple[int, ShardInfo]) -> TopK:
        first, shard = work
        best = TopK(settings.top)
        where = f"{shard.file} in {dataset.location}"
        with open_matching(dataset, shard, schema) as parquet:
            for batch in dataset.shard_batches(shard, parquet, [column], _BATCH_ROWS):
                units = unit_rows(embedding_rows(batch.column(0), where))
                best.add(units @ query, first)
                first += batch.num_rows
        return best

    best = TopK(settings.top)
    firsts = accumulate((shard.rows for shard in shards), initial=0)
    parts = map_ordered(compare, zip(firsts, shards, strict=False), available_cores())
    for shard, part in zip(shards, parts, strict=True):
        best.merge(part)
        settings.on_progress(shard.rows)
    return best


def _hits(dataset: Dataset, best: TopK) -> list[Hit]:
    starts = np.cumsum([0, *(shard.rows for shard in dataset.manifest.shards)])
    shards = np.searchsorted(starts, best.places, side="right") - 1
    places = list(zip(shards.tolist(), (best.places - starts[shards]).tolist(), strict=True))
    rows = dict(read_rows(dataset, set(places), _SHOWN))
    ranked = enumerate(zip(best.values.tolist(), places, strict=True), start=1)
    return [_hit(rank, cosine, rows[place]) for rank, (cosine, place) in ranked]


def _hit(rank: int, cosine: float, row: dict[str, Any]) -> Hit:
    image: dict[str, Any] = row.get("image") or {}
    score = row.get("score")
    return Hit(
        rank=rank,
        cosine=max(-1.0, min(1.0, cosine)),
        id=row["id"] or "",
        caption=row.get("caption"),
        score=score if score is not None and math.isfinite(score) else None,  # JSON lacks NaN
        level=row.get(LEVEL_COLUMN),
        path=image.get("path"),
        image=image.get("bytes"),
    )


def hits_as_json(result: SearchResult) -> dict[str, Any]:
    """Return `result` as JSON data, without images."""
    return {
        "dataset": result.dataset,
        "rows": result.rows,
        "model": {"name": result.model.name, "weights_sha256": result.model.weights_sha256},
        "over": result.over,
        "query": {"text" if result.image is None else "image": result.query},
        "hits": [
            {name: value for name, value in asdict(hit).items() if name != "image"}
            for hit in result.hits
        ],
    }


def write_sheet(result: SearchResult, file: Location) -> str:
    """Write `result` as one HTML file that works offline; return its location.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(file)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html {path} is not named like a page; give a file that ends in .html.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, render_sheet(result))
    except OSError as error:
        raise InputError(f"--html {path} cannot be written: {error.strerror or error}.") from error
    return str(path.absolute())
