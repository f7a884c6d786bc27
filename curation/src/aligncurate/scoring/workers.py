"""The ways of scoring: the same work in threads of one process, in Ray actors on CPU, and, cut in
two, in Ray tasks that decode and actors that hold a GPU.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from aligncurate.core.clip import one_torch_thread
from aligncurate.progress import OnProgress, silent
from aligncurate.scoring.preprocess import FramedBatch, Framer
from aligncurate.scoring.scorer import Scorer
from aligncurate.scoring.spec import Scoring
from aligncurate.sources import Unit
from aligncurate.threads import beat
from aligncurate.units.local import UNIT_TIMEOUT_S, LineStep, Work, work_in_process
from aligncurate.units.records import FinishedBatch, UnitRecord, unit_errors, write_unit
from aligncurate.units.run import Outcomes
from alignshared import Storage


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
