"""First half of scoring a batch: open and decode images, frame them for each model."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.clip import PixelView, pixel_view
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.sources import RawBatch
from aligncurate.sources.files import read_image
from alignshared import Reject
from alignshared.images import ImageError, decode_sized
from alignshared.schema import IMAGE_TYPE

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
        rows = _Images(self._image_root, self._views, self._shorter_side)
        rejects = list(raw.rejects)
        contents: list[bytes] = []
        keep: list[int] = []
        ids = raw.table["id"].to_pylist()
        for row, (id_, image) in enumerate(zip(ids, raw.table["image"].to_pylist(), strict=True)):
            try:
                contents.append(rows.add(image))
                keep.append(row)
            except ImageError as error:
                rejects.append(Reject(id_, image["path"], error.reason, error.detail))
        table = _with_contents(raw.table.take(pa.array(keep, pa.int64())), contents)
        return PreprocessedBatch(
            table,
            [_stacked(pixels) for pixels in rows.pixels],
            np.array(rows.indices, dtype=np.intp),
            np.array(rows.sizes, dtype=np.int32).reshape(-1, 2),
            rejects,
            time.perf_counter() - began,
        )


def _stacked(pixels: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)


class _Images:
    """Images of one batch; repeated ones are decoded once, for all views."""

    def __init__(
        self, image_root: str | None, views: list[PixelView], shorter_side: int | None
    ) -> None:
        self._image_root = image_root
        self._views = views
        self._shorter_side = shorter_side
        self._index_of: dict[bytes, int] = {}
        self._distinct_sizes: list[tuple[int, int]] = []
        self.pixels: list[list[npt.NDArray[np.uint8]]] = [[] for _ in views]
        self.indices: list[int] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, image: dict[str, Any]) -> bytes:
        """Add a pair's image; return its bytes."""
        content: bytes | None = image["bytes"]
        if content is None:
            content = read_image(self._image_root, image["path"])
        if content not in self._index_of:
            decoded, size = decode_sized(content, self._shorter_side)
            for pixels, view in zip(self.pixels, self._views, strict=True):
                pixels.append(view(decoded))
            self._distinct_sizes.append(size)
            self._index_of[content] = len(self._index_of)
        index = self._index_of[content]
        self.indices.append(index)
        self.sizes.append(self._distinct_sizes[index])
        return content


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
