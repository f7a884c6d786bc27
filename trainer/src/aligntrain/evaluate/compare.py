"""`aligntrain eval A --against B`: two models on the same questions, question by question."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from alignshared import InputError
from aligntrain.evaluate import store
from aligntrain.evaluate.benchmarks import Benchmark, parse_benchmarks
from aligntrain.evaluate.run import Evaluation, Settings, evaluate
from aligntrain.evaluate.scorers import Record
from aligntrain.evaluate.uncertainty import Difference, difference

COMPARISON = "comparison.json"
_MAY_DIFFER = ("model", "level")
"""Conditions of answers that are what a comparison is about."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of two models on a benchmark; `difference` is the first minus the second.

    It is None where one of them has no score, or where all questions are about one image.
    """

    benchmark: Benchmark
    questions: int
    score: float | None
    against: float | None
    difference: Difference | None


def compare(
    done: Evaluation, against: str | Path, benchmarks: str, settings: Settings
) -> list[Comparison]:
    """Compare the evaluation `done` with that of `against`, by question, on `benchmarks`.

    `against` is the folder of an evaluation, read as it is, or a model, which is evaluated first
    with the same settings as far as it is not yet. Writes `comparison.json` to the folder of
    `done`.

    Raises:
        InputError: the answers are of other questions, prompts or conditions, or of another judge.
    """
    other = Path(against)
    names = [benchmark.name for benchmark, _ in parse_benchmarks(benchmarks)]
    if not any((other / name / store.RESULT).is_file() for name in names):
        other = evaluate(against, benchmarks, settings).output
    if other.resolve() == done.output.resolve():
        raise InputError(
            f"--against {against} is the evaluation itself; give another model, or the folder of "
            "another evaluation."
        )
    comparisons = [
        _compare(outcome.benchmark, done.output, other, outcome.result.get("judge"))
        for outcome in done.outcomes
    ]
    store.write_json(
        done.output / COMPARISON,
        {
            "against": str(other),
            "benchmarks": {
                one.benchmark.name: {
                    "questions": one.questions,
                    "score": one.score,
                    "against": one.against,
                    "difference": one.difference
                    and {**asdict(one.difference), "detectable": one.difference.detectable},
                }
                for one in comparisons
            },
        },
    )
    return comparisons


def _compare(benchmark: Benchmark, ours: Path, theirs: Path, judge: str | None) -> Comparison:
    first, second = ours / benchmark.name, theirs / benchmark.name
    result = second / store.RESULT
    if not result.is_file():
        raise InputError(
            f"{theirs} has no result of {benchmark.name}; evaluate it there, or leave it out of "
            "--benchmarks."
        )
    conditions = store.read_conditions(first), store.read_conditions(second)
    for key in sorted(conditions[0].keys() | conditions[1].keys()):
        one, other = (condition.get(key) for condition in conditions)
        if key not in _MAY_DIFFER and one != other:
            raise InputError(
                f"the answers to {benchmark.name} in {second} were given under another {key} "
                f"({str(other)[:60]}, here {str(one)[:60]}); evaluate both alike."
            )
    graded_by = json.loads(result.read_bytes()).get("judge")
    if graded_by != judge:
        raise InputError(
            f"the answers to {benchmark.name} in {second} were judged by {graded_by}, here by "
            f"{judge}; give both the same judge."
        )
    records = [store.read_lines(folder / store.ANSWERS) for folder in (first, second)]
    if _questions(records[0]) != _questions(records[1]):
        raise InputError(
            f"the answers to {benchmark.name} in {second} are to other questions than those in "
            f"{first}; evaluate both on the same data."
        )
    scores = [benchmark.score(some) for some in records]
    return Comparison(
        benchmark,
        len(records[0]),
        scores[0].value,
        scores[1].value,
        difference(scores[0], scores[1], records[0]),
    )


def _questions(records: Sequence[Record]) -> list[tuple[int, str]]:
    return [(record["row"], record["prompt"]) for record in records]
