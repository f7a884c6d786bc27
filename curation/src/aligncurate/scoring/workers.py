"""Scoring in Ray workers: whole units in actors on CPU, or three steps: decoding tasks, GPU
actors, writing tasks.

Each class is sent to a worker and called once to load what it needs; the function it returns
then processes one unit after another.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aligncurate.scoring.preprocess import PreprocessedBatch, Preprocessor
from aligncurate.scoring.scorer import Scorer
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.sources import Unit
from aligncurate.threads import heartbeat
from aligncurate.units.records import FinishedBatch, UnitRecord, unit_errors, write_unit
from alignshared import Storage

PreprocessedUnit = tuple[Unit, list[PreprocessedBatch]]
ScoredUnit = tuple[Unit, list[FinishedBatch]]


@dataclass(frozen=True, slots=True)
class ScoreUnit:
    """Reads, scores and writes units in an actor on CPU."""

    spec: ScoringSpec

    def __call__(self) -> Callable[[Unit], UnitRecord]:
        """Load the models; return the function that processes a unit."""
        spec, preprocess, scorer = self.spec, Preprocessor(self.spec), Scorer(self.spec)
        output = Storage(spec.output)

        def score_unit(unit: Unit) -> UnitRecord:
            raw = spec.source.read(unit, spec.batch_size)
            batches = (scorer(preprocess(batch)) for batch in raw)
            return write_unit(output, unit.index, scorer.schema, batches)

        return score_unit


@dataclass(frozen=True, slots=True)
class PreprocessUnit:
    """First of three steps on a GPU cluster: decoding, in CPU tasks."""

    spec: ScoringSpec

    def __call__(self) -> Callable[[Unit], PreprocessedUnit]:
        """Build the transform; return the function that processes a unit."""
        preprocess, spec = Preprocessor(self.spec), self.spec

        def preprocess_unit(unit: Unit) -> PreprocessedUnit:
            preprocessed: list[PreprocessedBatch] = []
            with unit_errors():
                for batch in spec.source.read(unit, spec.batch_size):
                    preprocessed.append(preprocess(batch))
                    heartbeat()
            return unit, preprocessed

        return preprocess_unit


@dataclass(frozen=True, slots=True)
class ScorePreprocessed:
    """Second step: the models, in actors with a GPU each."""

    spec: ScoringSpec

    def __call__(self) -> Callable[[PreprocessedUnit], ScoredUnit]:
        """Load the models; return the function that processes a preprocessed unit."""
        scorer = Scorer(self.spec)

        def score_preprocessed(item: PreprocessedUnit) -> ScoredUnit:
            unit, batches = item
            scored: list[FinishedBatch] = []
            with unit_errors():
                for batch in batches:
                    scored.append(scorer(batch))
                    heartbeat()
            return unit, scored

        return score_preprocessed


@dataclass(frozen=True, slots=True)
class WriteScored:
    """Third step: writing the shard, in CPU tasks."""

    spec: ScoringSpec

    def __call__(self) -> Callable[[ScoredUnit], UnitRecord]:
        """Return the function that writes a scored unit."""
        output, schema = Storage(self.spec.output), self.spec.schema
        return lambda item: write_unit(output, item[0].index, schema, item[1])
