"""search: pairs whose embeddings are nearest to a text or an image."""

import math
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from aligncurate.checks.manifest import open_dataset
from aligncurate.core.vectors import TopK, Units, embedding_rows, unit_rows
from aligncurate.output.locations import newest_dataset
from aligncurate.output.shards import open_matching
from aligncurate.progress import OnProgress, silent
from aligncurate.reporting.examples import read_rows
from aligncurate.reporting.sheet import Hit, Over, SearchResult, render_sheet
from aligncurate.settings import Location
from aligncurate.threads import available_cores, map_ordered
from alignshared import ContractError, Dataset, InputError, ModelInfo, ShardInfo, atomic
from alignshared.images import ImageError, decode_image
from alignshared.schema import EMBEDDING_COLUMNS, LEVEL_COLUMN, require_columns

_COLUMN_OF = dict(zip(get_args(Over), EMBEDDING_COLUMNS, strict=True))
_BATCH_ROWS = 4096
_SHOWN = ("id", "caption", "score", LEVEL_COLUMN, "image")


def search(
    input: Location | None = None,
    *,
    text: str | None = None,
    image: Location | None = None,
    top: int = 10,
    over: Over = "images",
    weights: str | None = None,
    on_progress: OnProgress = silent,
) -> SearchResult:
    """Find the `top` pairs of `input` nearest to `text` or to the image in the file `image`.

    The query is embedded with the CLIP that scored the dataset and compared with every pair's
    embedding. Memory is constant.

    Args:
        input: a dataset scored with embeddings; by default the newest one under `data/`.
        text: text to search for, or
        image: file of an image to search for.
        top: number of results; ties go to the earlier rows.
        over: compare with the embeddings of the pairs' images or captions.
        weights: new path of the CLIP's weights, if moved: a file, or the folder
            of a model given as one.
        on_progress: called with the number of pairs compared.

    Raises:
        InputError: the query, the dataset or the weights are unusable.
    """
    _check_arguments(text, image, top, over)
    location = newest_dataset("bucket", "score").location if input is None else input
    dataset = open_dataset(location)
    model = _check_dataset(dataset, over)
    query, image_bytes = _embed(model, text, image, weights)
    best = _compare(dataset, query, over, top, on_progress)
    return SearchResult(
        dataset=dataset.location,
        rows=dataset.manifest.rows,
        model=model,
        over=over,
        query=text if text is not None else os.fspath(image or ""),
        image=image_bytes,
        hits=_hits(dataset, best),
    )


def _check_arguments(text: str | None, image: Location | None, top: int, over: str) -> None:
    if (text is None) == (image is None):
        raise InputError("give one of --text and --image: what to look for.")
    if text is not None and not text.strip():
        raise InputError("--text is empty; say what to look for.")
    if top < 1:
        raise InputError(f"--top must be at least 1 (got {top}).")
    if over not in get_args(Over):
        raise InputError(f"--over {over} is unknown; give {' or '.join(get_args(Over))}.")


def _check_dataset(dataset: Dataset, over: Over) -> ModelInfo:
    if dataset.manifest.rows == 0:
        raise InputError(f"{dataset.location} is empty, so there is nothing to find in it.")
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


def _embed(
    info: ModelInfo, text: str | None, image: Location | None, weights: str | None
) -> tuple[Units, bytes | None]:
    """Return the unit embedding [d] of the query, and the image bytes."""
    from aligncurate.core.clip import ClipModel, pixel_view, resolve_recorded

    data = None if image is None else _read_image(image)
    resolved = resolve_recorded(info, weights)
    clip = ClipModel(
        resolved, "fp32", long_captions="mean" if info.long_captions == "mean" else "truncate"
    )
    if data is None:
        return clip.embed_captions([text or ""])[0][0], None
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


def _compare(dataset: Dataset, query: Units, over: Over, top: int, on_progress: OnProgress) -> TopK:
    shards = dataset.manifest.shards
    schema = dataset.schema
    column = _COLUMN_OF[over]
    if schema.field(column).type.list_size != len(query):
        raise ContractError(
            f"the embeddings in {dataset.location} have {schema.field(column).type.list_size} "
            f"values and those of its CLIP {len(query)}; score the pairs again."
        )

    def compare(work: tuple[int, ShardInfo]) -> TopK:
        first, shard = work
        best = TopK(top)
        where = f"{shard.file} in {dataset.location}"
        with open_matching(dataset, shard, schema) as parquet:
            for batch in dataset.shard_batches(shard, parquet, [column], _BATCH_ROWS):
                units = unit_rows(embedding_rows(batch.column(0), where))
                best.add(units @ query, first)
                first += batch.num_rows
        return best

    best = TopK(top)
    firsts = accumulate((shard.rows for shard in shards), initial=0)
    parts = map_ordered(compare, zip(firsts, shards, strict=False), available_cores())
    for shard, part in zip(shards, parts, strict=True):
        best.merge(part)
        on_progress(shard.rows)
    return best


def _hits(dataset: Dataset, best: TopK) -> list[Hit]:
    ends = np.cumsum([shard.rows for shard in dataset.manifest.shards])
    places = [_shard_and_row(ends, place) for place in best.places.tolist()]
    rows = dict(read_rows(dataset, set(places), _SHOWN))
    return [
        _hit(rank, cosine, rows[place])
        for rank, (cosine, place) in enumerate(
            zip(best.values.tolist(), places, strict=True), start=1
        )
    ]


def _shard_and_row(ends: npt.NDArray[np.int64], place: int) -> tuple[int, int]:
    shard = int(np.searchsorted(ends, place, side="right"))
    return shard, place - (int(ends[shard - 1]) if shard else 0)


def _hit(rank: int, cosine: float, row: dict[str, Any]) -> Hit:
    image: dict[str, Any] = row.get("image") or {}
    return Hit(
        rank=rank,
        cosine=max(-1.0, min(1.0, cosine)),
        id=row["id"] or "",
        caption=row.get("caption"),
        score=_number(row.get("score")),
        level=row.get(LEVEL_COLUMN),
        path=image.get("path"),
        image=image.get("bytes"),
    )


def _number(score: float | None) -> float | None:
    """Return `score`, or None for NaN, which JSON lacks."""
    return score if score is not None and math.isfinite(score) else None


def hits_as_json(result: SearchResult) -> dict[str, Any]:
    """Return `result` as JSON data, without images."""
    return {
        "dataset": result.dataset,
        "rows": result.rows,
        "model": {"name": result.model.name, "weights_sha256": result.model.weights_sha256},
        "over": result.over,
        "query": {"text" if result.image is None else "image": result.query},
        "hits": [{name: getattr(hit, name) for name in _JSON_FIELDS} for hit in result.hits],
    }


_JSON_FIELDS: Sequence[str] = ("rank", "cosine", "id", "caption", "score", "level", "path")


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
