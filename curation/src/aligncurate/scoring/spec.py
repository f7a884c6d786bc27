"""Specification of a scoring run, sent to every worker."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from aligncurate.core.clip import ResolvedClip
from aligncurate.settings import Decode, LongCaptions, Precision
from aligncurate.sources import Source
from alignshared import ModelInfo
from alignshared.schema import scored_schema

REDUCED_MARGIN = 4
"""Minimum shorter side of a reduced-scale image, in multiples of the models' input; below it,
scores of photographs change by more than with bf16 (`benchmarks/jpeg_draft.py`).
"""


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """Everything a worker needs for scoring, without tensors so that it can be sent.

    `clip` gives `score` and the embeddings. With several models, `models` holds all of them by
    name, including `clip`, each with a column `score_<name>`; with one it is empty.
    """

    source: Source
    clip: ResolvedClip
    precision: Precision
    device: str
    batch_size: int
    embeddings: bool
    output: str
    models: dict[str, ResolvedClip] = field(default_factory=dict[str, ResolvedClip])
    long_captions: LongCaptions = "truncate"
    decode: Decode = "exact"

    @property
    def schema(self) -> pa.Schema:
        """Columns of the shards."""
        dim = self.clip.embedding_dim if self.embeddings else None
        return scored_schema(self.source.own_columns(), dim, self.models)

    @property
    def clips(self) -> list[ResolvedClip]:
        """Each model once, the main one first."""
        return [self.clip, *(clip for clip in self.models.values() if clip != self.clip)]

    @property
    def preprocessings(self) -> list[dict[str, Any]]:
        """Distinct preprocessings of the models; an image is framed once for each."""
        distinct: list[dict[str, Any]] = []
        for clip in self.clips:
            if clip.preprocess not in distinct:
                distinct.append(clip.preprocess)
        return distinct

    @property
    def decode_shorter_side(self) -> int | None:
        """Minimum shorter side of a decoded image in pixels; None decodes at full scale."""
        if self.decode == "exact":
            return None
        sizes = [preprocessing["size"] for preprocessing in self.preprocessings]
        return REDUCED_MARGIN * max(s if isinstance(s, int) else max(s) for s in sizes)

    def info(self, clip: ResolvedClip) -> ModelInfo:
        """Manifest entry of one model."""
        return clip.info(
            self.precision,
            long_captions=None if self.long_captions == "truncate" else self.long_captions,
            decode=None if self.decode == "exact" else self.decode,
        )
