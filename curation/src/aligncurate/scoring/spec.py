"""What a scoring run is to do, as every worker is told it."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from aligncurate.core.clip import LongCaptions, Precision, ResolvedClip
from aligncurate.sources import Source
from alignshared import ModelInfo
from alignshared.schema import scored_schema

Decode = Literal["exact", "fast"]
"""All pixels of a picture, or, of a JPEG much larger than the models' input, those that its decoder
gives at a half, a quarter or an eighth of the scale.
"""

REDUCED_MARGIN = 4
"""Decoded at reduced scale, a picture's shorter side keeps this many times the models' input: with
less, scores of photographs differ by more than bf16 has them differ (`benchmarks/jpeg_draft.py`).
"""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What to score and how; all that a worker needs, without tensors, so it can be sent to one.

    `clip` gives `score` and the embeddings. Where several models score, `models` holds all of them
    by name, `clip` among them, and each has a column `score_<name>`; for one it is empty.
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
        """Columns of the shards to be written."""
        dim = self.clip.embedding_dim if self.embeddings else None
        return scored_schema(self.source.own_columns(), dim, self.models)

    @property
    def clips(self) -> list[ResolvedClip]:
        """Each model once, the main one first."""
        return [self.clip, *(clip for clip in self.models.values() if clip != self.clip)]

    @property
    def framings(self) -> list[dict[str, Any]]:
        """The distinct ways in which the models' preprocessing frames a picture."""
        distinct: list[dict[str, Any]] = []
        for clip in self.clips:
            if clip.preprocess not in distinct:
                distinct.append(clip.preprocess)
        return distinct

    @property
    def decode_shorter_side(self) -> int | None:
        """How many pixels a picture's shorter side keeps at least; None decodes all of them."""
        if self.decode == "exact":
            return None
        return REDUCED_MARGIN * max(_longest(framing["size"]) for framing in self.framings)

    def info(self, clip: ResolvedClip) -> ModelInfo:
        """What the manifest says of one of the models."""
        return clip.info(
            self.precision,
            long_captions=None if self.long_captions == "truncate" else self.long_captions,
            decode=None if self.decode == "exact" else self.decode,
        )


def _longest(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else max(size)
