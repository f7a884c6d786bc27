"""The second half of scoring a batch: embed both sides with each model, take the cosines."""

import time

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.clip import ClipModel, score_pairs
from aligncurate.scoring.preprocess import FramedBatch, paths_of
from aligncurate.scoring.spec import Scoring
from aligncurate.units.records import FinishedBatch, Timing
from alignshared import Reason, Reject
from alignshared.schema import score_column


class Scorer:
    """Holds the models and scores framed batches."""

    def __init__(self, scoring: Scoring) -> None:
        self._embeddings = scoring.embeddings
        clips = scoring.clips
        self._models = [
            ClipModel(clip, scoring.precision, scoring.device, scoring.long_captions)
            for clip in clips
        ]
        self._framing = [scoring.framings.index(clip.preprocess) for clip in clips]
        self._columns = {
            score_column(name): clips.index(clip) for name, clip in scoring.models.items()
        }
        self.schema = scoring.schema

    def __call__(self, framed: FramedBatch) -> FinishedBatch:
        """The rows of `framed` with their scores, ready to be written."""
        began = time.perf_counter()
        if framed.table.num_rows == 0:
            timing = Timing(framed.decode_s, 0.0)
            return FinishedBatch(self.schema.empty_table(), framed.rejects, timing)
        arrays = self._score_columns(framed)
        arrays |= {name: framed.table[name] for name in framed.table.column_names}
        table = pa.table([arrays[name] for name in self.schema.names], names=self.schema.names)
        table, rejects = _without_nonfinite(table.cast(self.schema), ["score", *self._columns])
        timing = Timing(framed.decode_s, time.perf_counter() - began)
        return FinishedBatch(table, framed.rejects + rejects, timing)

    def _score_columns(self, framed: FramedBatch) -> dict[str, pa.Array]:
        """What scoring adds, by column."""
        captions: list[str] = framed.table["caption"].to_pylist()
        distinct = list(dict.fromkeys(captions))
        caption_N = _positions(captions, distinct)
        arrays = {
            "width": pa.array(framed.sizes_N2[:, 0]),
            "height": pa.array(framed.sizes_N2[:, 1]),
        }
        scores: list[npt.NDArray[np.float32]] = []
        for index, model in enumerate(self._models):
            images_UD = model.embed_images(framed.pixels[self._framing[index]])
            texts_UD, truncated_U = model.embed_captions(distinct)
            images_ND, texts_ND = images_UD[framed.picture_N], texts_UD[caption_N]
            scores.append(score_pairs(images_ND, texts_ND))
            if index == 0:
                arrays["caption_truncated"] = pa.array(truncated_U[caption_N])
                if self._embeddings:
                    arrays["image_embedding"] = _embedding_array(images_ND)
                    arrays["text_embedding"] = _embedding_array(texts_ND)
        arrays["score"] = pa.array(scores[0])
        return arrays | {name: pa.array(scores[at]) for name, at in self._columns.items()}


def _without_nonfinite(table: pa.Table, columns: list[str]) -> tuple[pa.Table, list[Reject]]:
    """The rows whose scores are numbers, and rejects for those that half precision or a weight that
    is none made NaN; `columns` are the scores, the main one first.
    """
    scores = np.stack([table[name].to_numpy() for name in columns], axis=1)
    finite_N = np.isfinite(scores).all(axis=1)
    if finite_N.all():
        return table, []
    bad = table.filter(pa.array(~finite_N))
    rejects: list[Reject] = []
    for row, values in enumerate(scores[~finite_N]):
        # Where several models score, the column tells which of them it was.
        at = len(columns) - 1 - int(np.argmin(np.isfinite(values[::-1])))
        of = "" if len(columns) == 1 else f" in {columns[at]}"
        detail = f"the model gives the score {values[at]}{of}"
        path = paths_of(bad)[row].as_py()
        rejects.append(Reject(bad["id"][row].as_py(), path, Reason.NON_FINITE_SCORE, detail))
    return table.filter(pa.array(finite_N)), rejects


def _positions(values: list[str], distinct: list[str]) -> npt.NDArray[np.intp]:
    place = {value: index for index, value in enumerate(distinct)}
    return np.array([place[value] for value in values], dtype=np.intp)


def _embedding_array(embeddings_ND: npt.NDArray[np.float32]) -> pa.Array:
    flat = pa.array(embeddings_ND.astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, embeddings_ND.shape[1])
