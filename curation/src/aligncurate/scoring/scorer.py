"""Second half of scoring a batch: embed images and captions with each model, take cosines."""

import time

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligncurate.core.clip import ClipModel, score_pairs
from aligncurate.scoring.preprocess import PreprocessedBatch, paths_of
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.units.records import FinishedBatch, Timing
from alignshared import Reason, Reject
from alignshared.schema import score_column


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
        caption_N = _positions(captions, distinct)
        arrays = {
            "width": pa.array(batch.sizes_N2[:, 0]),
            "height": pa.array(batch.sizes_N2[:, 1]),
        }
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


def _positions(values: list[str], distinct: list[str]) -> npt.NDArray[np.intp]:
    index_of = {value: index for index, value in enumerate(distinct)}
    return np.array([index_of[value] for value in values], dtype=np.intp)


def _embedding_array(embeddings_ND: npt.NDArray[np.float32]) -> pa.Array:
    flat = pa.array(embeddings_ND.astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, embeddings_ND.shape[1])
