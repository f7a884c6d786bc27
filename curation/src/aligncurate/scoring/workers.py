"""Scoring in Ray workers: whole units in actors on CPU, or three steps: decoding tasks, GPU
actors, writing tasks.

Each function is sent to a worker and called once to load what it needs; the function it returns
then processes one unit after another.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from aligncurate.scoring.scorer import PreprocessedBatch, Preprocessor, Scorer
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.sources import Unit
from aligncurate.threads import heartbeat
from aligncurate.units.records import FinishedBatch, UnitRecord, unit_errors, write_unit
from alignshared import Storage

PreprocessedUnit = tuple[Unit, list[PreprocessedBatch]]
ScoredUnit = tuple[Unit, list[FinishedBatch]]

Item = TypeVar("Item")
Result = TypeVar("Result")


def unit_scorer(spec: ScoringSpec) -> Callable[[Unit], UnitRecord]:
    """Load the models; return a function that reads, scores and writes a unit, on CPU."""
    preprocess, scorer, output = Preprocessor(spec), Scorer(spec), Storage(spec.output)

    def score_unit(unit: Unit) -> UnitRecord:
        batches = (scorer(preprocess(raw)) for raw in spec.source.read(unit, spec.batch_size))
        return write_unit(output, unit.index, scorer.schema, batches)

    return score_unit


def unit_preprocessor(spec: ScoringSpec) -> Callable[[Unit], PreprocessedUnit]:
    """Return the first of three steps on a GPU cluster: decoding, in CPU tasks."""
    preprocess = Preprocessor(spec)

    def preprocess_unit(unit: Unit) -> PreprocessedUnit:
        with unit_errors():
            return unit, _each(preprocess, spec.source.read(unit, spec.batch_size))

    return preprocess_unit


def preprocessed_scorer(spec: ScoringSpec) -> Callable[[PreprocessedUnit], ScoredUnit]:
    """Load the models; return the second step, in actors with a GPU each."""
    scorer = Scorer(spec)

    def score_preprocessed(item: PreprocessedUnit) -> ScoredUnit:
        with unit_errors():
            return item[0], _each(scorer, item[1])

    return score_preprocessed


def scored_writer(spec: ScoringSpec) -> Callable[[ScoredUnit], UnitRecord]:
    """Return the third step: writing the shard, in CPU tasks."""
    output, schema = Storage(spec.output), spec.schema
    return lambda item: write_unit(output, item[0].index, schema, item[1])


def _each(work: Callable[[Item], Result], batches: Iterable[Item]) -> list[Result]:
    results: list[Result] = []
    for batch in batches:
        results.append(work(batch))
        heartbeat()
    return results
