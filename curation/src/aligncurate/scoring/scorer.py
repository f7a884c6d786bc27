"""Scoring a batch: open and decode images and frame them for each model; then embed images and
captions with each model and take cosines.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.clip import ClipModel, pixel_view, score_pairs
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.sources import RawBatch
from aligncurate.sources.files import read_image
from aligncurate.units.records import FinishedBatch, Timing
from alignshared import Reason, Reject
from alignshared.images import ImageError, decode_sized
from alignshared.schema import IMAGE_TYPE, score_column

_CHUNK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class PreprocessedBatch:
    """Pairs with decoded and framed images.

    `pixels` holds, per preprocessing of the spec, the U distinct images [U, H, W, 3] uint8;
    `image_N` [N] is each pair's row among them, `sizes_N2` [N, 2] width and height in pixels as
    displayed.
    """

    table: pa.Table
    pixels: list[npt.NDArray[np.uint8]]
    image_N: npt.NDArray[np.intp]
    sizes_N2: npt.NDArray[np.int32]
    rejects: list[Reject]
    decode_s: float


class Preprocessor:
    """Opens, decodes and frames the images of a batch, without a model."""

    def __init__(self, spec: ScoringSpec) -> None:
        self._image_root = spec.source.image_root
        self._views = [pixel_view(preprocessing) for preprocessing in spec.preprocessings]
        self._shorter_side = spec.decode_shorter_side

    def __call__(self, raw: RawBatch) -> PreprocessedBatch:
        """Return `raw` with pixels; pairs with unusable images become rejects."""
        began = time.perf_counter()
        rejects = list(raw.rejects)
        keep: list[int] = []
        contents: list[bytes] = []
        # Repeated images are decoded once, for all views.
        index_of: dict[bytes, int] = {}
        sizes: list[tuple[int, int]] = []
        framed: list[list[npt.NDArray[np.uint8]]] = []
        ids = raw.table["id"].to_pylist()
        for row, (id_, image) in enumerate(zip(ids, raw.table["image"].to_pylist(), strict=True)):
            try:
                content: bytes | None = image["bytes"]
                if content is None:
                    content = read_image(self._image_root, image["path"])
                if content not in index_of:
                    decoded, size = decode_sized(content, self._shorter_side)
                    framed.append([view(decoded) for view in self._views])
                    sizes.append(size)
                    index_of[content] = len(index_of)
            except ImageError as error:
                rejects.append(Reject(id_, image["path"], error.reason, error.detail))
                continue
            contents.append(content)
            keep.append(row)
        image_N = [index_of[content] for content in contents]
        none = np.empty((0, 0, 0, 3), np.uint8)
        return PreprocessedBatch(
            _with_contents(raw.table.take(pa.array(keep, pa.int64())), contents),
            [
                np.stack([images[view] for images in framed]) if framed else none
                for view in range(len(self._views))
            ],
            np.array(image_N, dtype=np.intp),
            np.array([sizes[index] for index in image_N], dtype=np.int32).reshape(-1, 2),
            rejects,
            time.perf_counter() - began,
        )


def _with_contents(table: pa.Table, contents: list[bytes]) -> pa.Table:
    """Return `table` with `contents` as `image.bytes`, chunked since an Arrow array holds at most 2
    GiB.
    """
    paths = paths_of(table).combine_chunks()
    chunks = [
        pa.StructArray.from_arrays(
            [pa.array(contents[begin:end], pa.binary()), paths.slice(begin, end - begin)],
            fields=list(IMAGE_TYPE),
        )
        for begin, end in _spans([len(content) for content in contents])
    ]
    images = pa.chunked_array(chunks, IMAGE_TYPE)
    return table.set_column(table.schema.get_field_index("image"), "image", images)


def paths_of(table: pa.Table) -> pa.ChunkedArray:
    """Column `image.path` of `table`."""
    bytes_and_paths: list[pa.ChunkedArray] = table["image"].flatten()
    return bytes_and_paths[1]


def _spans(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Yield row ranges of at most _CHUNK_BYTES, or of one row."""
    begin = total = 0
    for row, size in enumerate(sizes):
        if total + size > _CHUNK_BYTES and row > begin:
            yield begin, row
            begin, total = row, 0
        total += size
    if begin < len(sizes):
        yield begin, len(sizes)


class Scorer:
    """Holds the models and scores preprocessed batches."""

    def __init__(self, spec: ScoringSpec) -> None:
        self._embeddings = spec.embeddings
        clips = spec.clips
        self._models = [
            ClipModel(clip, spec.precision, spec.device, spec.long_captions) for clip in clips
        ]
        self._preprocessing_of = [spec.preprocessings.index(clip.preprocess) for clip in clips]
        self._columns = {
            score_column(name): clips.index(clip) for name, clip in spec.models.items()
        }
        self.schema = spec.schema

    def __call__(self, batch: PreprocessedBatch) -> FinishedBatch:
        """Return the scored rows of `batch`, ready to write."""
        began = time.perf_counter()
        if batch.table.num_rows == 0:
            timing = Timing(batch.decode_s, 0.0)
            return FinishedBatch(self.schema.empty_table(), batch.rejects, timing)
        arrays = self._score_columns(batch)
        arrays |= {name: batch.table[name] for name in batch.table.column_names}
        table = pa.table([arrays[name] for name in self.schema.names], names=self.schema.names)
        table, rejects = _without_nonfinite(table.cast(self.schema), ["score", *self._columns])
        timing = Timing(batch.decode_s, time.perf_counter() - began)
        return FinishedBatch(table, batch.rejects + rejects, timing)

    def _score_columns(self, batch: PreprocessedBatch) -> dict[str, pa.Array]:
        """Return the columns added by scoring."""
        captions: list[str] = batch.table["caption"].to_pylist()
        distinct = list(dict.fromkeys(captions))
        index_of = {caption: index for index, caption in enumerate(distinct)}
        caption_N = np.array([index_of[caption] for caption in captions], dtype=np.intp)
        arrays = {"width": pa.array(batch.sizes_N2[:, 0]), "height": pa.array(batch.sizes_N2[:, 1])}
        scores: list[npt.NDArray[np.float32]] = []
        for index, model in enumerate(self._models):
            images_UD = model.embed_images(batch.pixels[self._preprocessing_of[index]])
            texts_UD, truncated_U = model.embed_captions(distinct)
            images_ND, texts_ND = images_UD[batch.image_N], texts_UD[caption_N]
            scores.append(score_pairs(images_ND, texts_ND))
            if index == 0:
                arrays["caption_truncated"] = pa.array(truncated_U[caption_N])
                if self._embeddings:
                    arrays["image_embedding"] = _embedding_array(images_ND)
                    arrays["text_embedding"] = _embedding_array(texts_ND)
        arrays["score"] = pa.array(scores[0])
        return arrays | {name: pa.array(scores[index]) for name, index in self._columns.items()}


def _without_nonfinite(table: pa.Table, columns: list[str]) -> tuple[pa.Table, list[Reject]]:
    """Return rows with finite scores, and rejects for the others (half-precision overflow or NaN
    weights); `columns` are the scores, the main one first.
    """
    scores = np.stack([table[name].to_numpy() for name in columns], axis=1)
    finite_N = np.isfinite(scores).all(axis=1)
    if finite_N.all():
        return table, []
    bad = table.filter(pa.array(~finite_N))
    rejects: list[Reject] = []
    for row, values in enumerate(scores[~finite_N]):
        # With several models, the last non-finite column names one of them.
        index = len(columns) - 1 - int(np.argmin(np.isfinite(values[::-1])))
        column = "" if len(columns) == 1 else f" in {columns[index]}"
        detail = f"the model gives the score {values[index]}{column}"
        path = paths_of(bad)[row].as_py()
        rejects.append(Reject(bad["id"][row].as_py(), path, Reason.NON_FINITE_SCORE, detail))
    return table.filter(pa.array(finite_N)), rejects


def _embedding_array(embeddings_ND: npt.NDArray[np.float32]) -> pa.Array:
    flat = pa.array(embeddings_ND.astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, embeddings_ND.shape[1])
