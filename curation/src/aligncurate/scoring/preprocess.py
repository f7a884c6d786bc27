"""The first half of scoring a batch: open and decode the pictures, frame them for each model."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.clip import PixelView, pixel_view
from aligncurate.scoring.spec import Scoring
from aligncurate.sources import RawBatch
from aligncurate.sources.files import read_image
from alignshared import Reject
from alignshared.pictures import ImageError, decode_sized
from alignshared.schema import IMAGE_TYPE

_CHUNK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class FramedBatch:
    """Pairs whose pictures are decoded and framed.

    `pixels` holds for each of the scoring's framings the U distinct pictures, [U, H, W, 3] uint8;
    `picture_N` [N] is the row of each pair's picture among them, `sizes_N2` [N, 2] width and height
    in pixels as displayed.
    """

    table: pa.Table
    pixels: list[npt.NDArray[np.uint8]]
    picture_N: npt.NDArray[np.intp]
    sizes_N2: npt.NDArray[np.int32]
    rejects: list[Reject]
    decode_s: float


class Framer:
    """Opens, decodes and frames the pictures of a batch; needs no model."""

    def __init__(self, scoring: Scoring) -> None:
        self._image_root = scoring.source.image_root
        self._views = [pixel_view(framing) for framing in scoring.framings]
        self._shorter_side = scoring.decode_shorter_side

    def __call__(self, raw: RawBatch) -> FramedBatch:
        """`raw` with pixels; pairs whose picture cannot be used become rejects."""
        began = time.perf_counter()
        rows = _Rows(self._image_root, self._views, self._shorter_side)
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
        return FramedBatch(
            table,
            [_stacked(pixels) for pixels in rows.pixels],
            np.array(rows.picture, dtype=np.intp),
            np.array(rows.sizes, dtype=np.int32).reshape(-1, 2),
            rejects,
            time.perf_counter() - began,
        )


def _stacked(pixels: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)


class _Rows:
    """The pictures of one batch; one that occurs twice is decoded once, for all views."""

    def __init__(
        self, image_root: str | None, views: list[PixelView], shorter_side: int | None
    ) -> None:
        self._image_root = image_root
        self._views = views
        self._shorter_side = shorter_side
        self._known: dict[bytes, int] = {}
        self._distinct_sizes: list[tuple[int, int]] = []
        self.pixels: list[list[npt.NDArray[np.uint8]]] = [[] for _ in views]
        self.picture: list[int] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, image: dict[str, Any]) -> bytes:
        """Take the picture of one more pair; returns its bytes."""
        content: bytes | None = image["bytes"]
        if content is None:
            content = read_image(self._image_root, image["path"])
        if content not in self._known:
            decoded, size = decode_sized(content, self._shorter_side)
            for pixels, view in zip(self.pixels, self._views, strict=True):
                pixels.append(view(decoded))
            self._distinct_sizes.append(size)
            self._known[content] = len(self._known)
        index = self._known[content]
        self.picture.append(index)
        self.sizes.append(self._distinct_sizes[index])
        return content


def _with_contents(table: pa.Table, contents: list[bytes]) -> pa.Table:
    """`table` with `contents` as `image.bytes`; in chunks, since one Arrow array holds 2 GiB."""
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
    """The column `image.path` of `table`."""
    bytes_and_paths: list[pa.ChunkedArray] = table["image"].flatten()
    return bytes_and_paths[1]


def _spans(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold at most _CHUNK_BYTES, or one row, each."""
    begin = total = 0
    for row, size in enumerate(sizes):
        if total + size > _CHUNK_BYTES and row > begin:
            yield begin, row
            begin, total = row, 0
        total += size
    if begin < len(sizes):
        yield begin, len(sizes)
