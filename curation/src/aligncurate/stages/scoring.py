"""The work of scoring, batch by batch: open and frame the pictures, embed both sides, take the
cosine.

The same functions run in threads of one process, in Ray actors on CPU, and, cut in two, in Ray
tasks that decode and actors that hold a GPU.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.clip import (
    ClipModel,
    PixelView,
    Precision,
    ResolvedClip,
    one_torch_thread,
    pixel_view,
    score_pairs,
)
from aligncurate.local import beat
from aligncurate.progress import OnProgress, silent
from aligncurate.sources import RawBatch, Source, Unit
from aligncurate.sources.files import read_picture
from aligncurate.stages.in_process import UNIT_TIMEOUT_S, LineStep, Work, work_in_process
from aligncurate.stages.run_units import Outcomes
from aligncurate.units import FinishedBatch, Timing, UnitRecord, unit_errors, write_unit
from alignshared import Reason, Reject, Storage
from alignshared.pictures import ImageError, decode_image
from alignshared.schema import IMAGE_TYPE, scored_schema

_CHUNK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Scoring:
    """What to score and how; all that a worker needs, without tensors, so it can be sent to one."""

    source: Source
    clip: ResolvedClip
    precision: Precision
    device: str
    batch_size: int
    embeddings: bool
    output: str

    @property
    def schema(self) -> pa.Schema:
        """Columns of the shards to be written."""
        dim = self.clip.embedding_dim if self.embeddings else None
        return scored_schema(self.source.own_columns(), dim)


@dataclass(frozen=True, slots=True)
class FramedBatch:
    """Pairs whose pictures are decoded and framed.

    `pixels_UHWC` [U, H, W, 3] uint8 are the U distinct pictures, `picture_N` [N] the row of each
    pair's picture among them, `sizes_N2` [N, 2] width and height in pixels as displayed.
    """

    table: pa.Table
    pixels_UHWC: npt.NDArray[np.uint8]
    picture_N: npt.NDArray[np.intp]
    sizes_N2: npt.NDArray[np.int32]
    rejects: list[Reject]
    decode_s: float


class Framer:
    """Opens, decodes and frames the pictures of a batch; needs no model."""

    def __init__(self, scoring: Scoring) -> None:
        self._image_root = scoring.source.image_root
        self._view = pixel_view(scoring.clip.preprocess)

    def __call__(self, raw: RawBatch) -> FramedBatch:
        """`raw` with pixels; pairs whose picture cannot be used become rejects."""
        began = time.perf_counter()
        rows = _Rows(self._image_root, self._view)
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
        pixels = np.stack(rows.pixels) if rows.pixels else np.empty((0, 0, 0, 3), np.uint8)
        return FramedBatch(
            table,
            pixels,
            np.array(rows.picture, dtype=np.intp),
            np.array(rows.sizes, dtype=np.int32).reshape(-1, 2),
            rejects,
            time.perf_counter() - began,
        )


class _Rows:
    """The pictures of one batch; one that occurs twice is decoded once."""

    def __init__(self, image_root: str | None, view: PixelView) -> None:
        self._image_root = image_root
        self._view = view
        self._known: dict[bytes, int] = {}
        self._distinct_sizes: list[tuple[int, int]] = []
        self.pixels: list[npt.NDArray[np.uint8]] = []
        self.picture: list[int] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, image: dict[str, Any]) -> bytes:
        """Take the picture of one more pair; returns its bytes."""
        content: bytes | None = image["bytes"]
        if content is None:
            content = read_picture(self._image_root, image["path"])
        if content not in self._known:
            decoded = decode_image(content)
            self.pixels.append(self._view(decoded))
            self._distinct_sizes.append(decoded.size)
            self._known[content] = len(self._known)
        index = self._known[content]
        self.picture.append(index)
        self.sizes.append(self._distinct_sizes[index])
        return content


def _with_contents(table: pa.Table, contents: list[bytes]) -> pa.Table:
    """`table` with `contents` as `image.bytes`; in chunks, since one Arrow array holds 2 GiB."""
    paths = _paths(table).combine_chunks()
    chunks = [
        pa.StructArray.from_arrays(
            [pa.array(contents[begin:end], pa.binary()), paths.slice(begin, end - begin)],
            fields=list(IMAGE_TYPE),
        )
        for begin, end in _spans([len(content) for content in contents])
    ]
    images = pa.chunked_array(chunks, IMAGE_TYPE)
    return table.set_column(table.schema.get_field_index("image"), "image", images)


def _paths(table: pa.Table) -> pa.ChunkedArray:
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


class Scorer:
    """Holds the model and scores framed batches."""

    def __init__(self, scoring: Scoring) -> None:
        self._embeddings = scoring.embeddings
        self._model = ClipModel(scoring.clip, scoring.precision, scoring.device)
        self.schema = scoring.schema

    def __call__(self, framed: FramedBatch) -> FinishedBatch:
        """The rows of `framed` with their scores, ready to be written."""
        began = time.perf_counter()
        if framed.table.num_rows == 0:
            timing = Timing(framed.decode_s, 0.0)
            return FinishedBatch(self.schema.empty_table(), framed.rejects, timing)
        captions: list[str] = framed.table["caption"].to_pylist()
        distinct = list(dict.fromkeys(captions))
        caption_N = _positions(captions, distinct)
        images_UD = self._model.embed_images(framed.pixels_UHWC)
        texts_UD, truncated_U = self._model.embed_captions(distinct)
        images_ND, texts_ND = images_UD[framed.picture_N], texts_UD[caption_N]
        columns = {
            "width": framed.sizes_N2[:, 0],
            "height": framed.sizes_N2[:, 1],
            "score": score_pairs(images_ND, texts_ND),
            "caption_truncated": truncated_U[caption_N],
        }
        arrays = {name: pa.array(values) for name, values in columns.items()}
        if self._embeddings:
            arrays["image_embedding"] = _embedding_array(images_ND)
            arrays["text_embedding"] = _embedding_array(texts_ND)
        arrays |= {name: framed.table[name] for name in framed.table.column_names}
        table = pa.table([arrays[name] for name in self.schema.names], names=self.schema.names)
        table, rejects = _without_nonfinite(table.cast(self.schema))
        timing = Timing(framed.decode_s, time.perf_counter() - began)
        return FinishedBatch(table, framed.rejects + rejects, timing)


def _without_nonfinite(table: pa.Table) -> tuple[pa.Table, list[Reject]]:
    """The rows whose score is a number, and rejects for those that half precision or a weight that
    is none made NaN.
    """
    finite_N = np.isfinite(table["score"].to_numpy())
    if finite_N.all():
        return table, []
    bad = table.filter(pa.array(~finite_N))
    rejects = [
        Reject(id_, path, Reason.NON_FINITE_SCORE, f"the model gives the score {score}")
        for id_, path, score in zip(
            bad["id"].to_pylist(), _paths(bad).to_pylist(), bad["score"].to_pylist(), strict=True
        )
    ]
    return table.filter(pa.array(finite_N)), rejects


def _positions(values: list[str], distinct: list[str]) -> npt.NDArray[np.intp]:
    place = {value: index for index, value in enumerate(distinct)}
    return np.array([place[value] for value in values], dtype=np.intp)


def _embedding_array(embeddings_ND: npt.NDArray[np.float32]) -> pa.Array:
    flat = pa.array(embeddings_ND.astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, embeddings_ND.shape[1])


def score_in_process(
    scoring: Scoring,
    units: Iterable[Unit],
    threads: int,
    on_progress: OnProgress = silent,
    timeout_s: float = UNIT_TIMEOUT_S,
) -> Outcomes:
    """Score and write `units` on `threads` threads of this process; yields each unit's record, or
    why it failed.

    On CPU each thread decodes and runs the model on one core; with a GPU the threads decode and one
    more feeds the model.
    """
    framer, scorer = Framer(scoring), Scorer(scoring)
    if scoring.device == "cpu":
        steps = [LineStep(lambda batch: scorer(framer(batch)), threads)]
    else:
        steps = [LineStep(framer, threads), LineStep(scorer, 1)]
    work = Work(
        read=partial(scoring.source.read, batch_rows=scoring.batch_size),
        steps=steps,
        schema=scorer.schema,
        output=Storage(scoring.output),
        timeout_s=timeout_s,
    )
    with one_torch_thread():
        yield from work_in_process(work, units, on_progress)


@dataclass(frozen=True, slots=True)
class ScoreUnit:
    """Everything for one unit in one place: what an actor on CPU does."""

    scoring: Scoring

    def __call__(self) -> Callable[[Unit], UnitRecord]:
        """Load the model; the result scores and writes one unit after another."""
        framer, scorer = Framer(self.scoring), Scorer(self.scoring)
        output = Storage(self.scoring.output)

        def score_unit(unit: Unit) -> UnitRecord:
            raw = self.scoring.source.read(unit, self.scoring.batch_size)
            batches = (scorer(framer(batch)) for batch in raw)
            return write_unit(output, unit.index, scorer.schema, batches)

        return score_unit


@dataclass(frozen=True, slots=True)
class FrameUnit:
    """The first of three steps on a GPU cluster: decode, in tasks on CPUs."""

    scoring: Scoring

    def __call__(self) -> Callable[[Unit], tuple[Unit, list[FramedBatch]]]:
        """Build the transform; the result frames one unit after another."""
        framer, scoring = Framer(self.scoring), self.scoring

        def frame_unit(unit: Unit) -> tuple[Unit, list[FramedBatch]]:
            framed: list[FramedBatch] = []
            with unit_errors():
                for batch in scoring.source.read(unit, scoring.batch_size):
                    framed.append(framer(batch))
                    beat()
            return unit, framed

        return frame_unit


@dataclass(frozen=True, slots=True)
class ScoreFramed:
    """The second step: the model, in actors that hold a GPU each."""

    scoring: Scoring

    def __call__(
        self,
    ) -> Callable[[tuple[Unit, list[FramedBatch]]], tuple[Unit, list[FinishedBatch]]]:
        """Load the model; the result scores one framed unit after another."""
        scorer = Scorer(self.scoring)

        def score_framed(
            item: tuple[Unit, list[FramedBatch]],
        ) -> tuple[Unit, list[FinishedBatch]]:
            scored: list[FinishedBatch] = []
            with unit_errors():
                for batch in item[1]:
                    scored.append(scorer(batch))
                    beat()
            return item[0], scored

        return score_framed


@dataclass(frozen=True, slots=True)
class WriteScored:
    """The third step: write the shard, in tasks on CPUs."""

    scoring: Scoring

    def __call__(self) -> Callable[[tuple[Unit, list[FinishedBatch]]], UnitRecord]:
        """The result writes one scored unit after another."""
        output, schema = Storage(self.scoring.output), self.scoring.schema
        return lambda item: write_unit(output, item[0].index, schema, item[1])
