"""The ways of scoring: the same work in threads of one process, in Ray actors on CPU, and, cut in
two, in Ray tasks that decode and actors that hold a GPU.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from aligncurate.core.clip import one_torch_thread
from aligncurate.local import map_ordered
from aligncurate.progress import OnProgress, silent
from aligncurate.sources import Unit
from aligncurate.stages.framing import FramedBatch, Framer
from aligncurate.stages.scorer import Scorer
from aligncurate.stages.task import Scoring
from aligncurate.units import FinishedBatch, UnitRecord, write_unit
from alignshared import Storage


def score_in_process(
    scoring: Scoring, units: Iterable[Unit], threads: int, on_progress: OnProgress = silent
) -> Iterator[UnitRecord]:
    """Score and write `units` on `threads` threads of this process; yields each unit's record.

    On CPU each thread decodes and runs the model on one core; with a GPU the threads decode and one
    more feeds the model.
    """
    framer, scorer = Framer(scoring), Scorer(scoring)
    raw = ((u, b) for u in units for b in scoring.source.read(u, scoring.batch_size))
    with one_torch_thread():
        if scoring.device == "cpu":
            done = map_ordered(lambda item: (item[0], scorer(framer(item[1]))), raw, threads)
        else:
            framed = map_ordered(lambda item: (item[0], framer(item[1])), raw, threads)
            done = map_ordered(lambda item: (item[0], scorer(item[1])), framed, 1)
        output = Storage(scoring.output)
        for unit, group in groupby(done, key=lambda item: item[0]):
            batches = _watched((batch for _, batch in group), on_progress)
            yield write_unit(output, unit.index, scorer.schema, batches)


def _watched(batches: Iterable[FinishedBatch], on_progress: OnProgress) -> Iterator[FinishedBatch]:
    for batch in batches:
        yield batch
        on_progress(batch.rows_in, len(batch.rejects))


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
        return lambda unit: (
            unit,
            [framer(batch) for batch in scoring.source.read(unit, scoring.batch_size)],
        )


@dataclass(frozen=True, slots=True)
class ScoreFramed:
    """The second step: the model, in actors that hold a GPU each."""

    scoring: Scoring

    def __call__(
        self,
    ) -> Callable[[tuple[Unit, list[FramedBatch]]], tuple[Unit, list[FinishedBatch]]]:
        """Load the model; the result scores one framed unit after another."""
        scorer = Scorer(self.scoring)
        return lambda item: (item[0], [scorer(batch) for batch in item[1]])


@dataclass(frozen=True, slots=True)
class WriteScored:
    """The third step: write the shard, in tasks on CPUs."""

    scoring: Scoring

    def __call__(self) -> Callable[[tuple[Unit, list[FinishedBatch]]], UnitRecord]:
        """The result writes one scored unit after another."""
        output, schema = Storage(self.scoring.output), self.scoring.schema
        return lambda item: write_unit(output, item[0].index, schema, item[1])
