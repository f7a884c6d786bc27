"""`aligntrain eval A --against B`: two models on the same questions, question by question."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignshared import InputError
from aligntrain.evaluate import store
from aligntrain.evaluate.benchmarks import PROTOCOL, Benchmark, parse_benchmarks
from aligntrain.evaluate.run import Evaluation, Settings, evaluate, results_folder
from aligntrain.evaluate.scorers import Record
from aligntrain.evaluate.uncertainty import Difference, difference
from aligntrain.inference.load import model_folder

COMPARISON = "comparison.json"
_MAY_DIFFER = ("model", "level")
"""Conditions of answers that are what a comparison is about."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of two models on a benchmark; `difference` is the first minus the second.

    It is None where one of them has no score, or where nothing shows its spread.
    """

    benchmark: Benchmark
    questions: int
    score: float | None
    against: float | None
    difference: Difference | None


def check_against(
    against: str | Path,
    model: str | Path,
    benchmarks: str,
    settings: Settings,
    output: str | Path | None,
) -> None:
    """Check, before anything is asked, what `compare` can know of `against` by then.

    Raises:
        InputError: it is neither a model nor an evaluation, the evaluation of `model` itself, or
            one under other settings.
    """
    names = parse_benchmarks(benchmarks)
    folder = Path(against)
    if _has_results(folder, names):
        for benchmark, _ in names:
            _result(folder, benchmark)
    else:
        folder = results_folder(against)
        model_folder(against)
    if folder.resolve() == results_folder(model, output).resolve():
        raise InputError(
            f"--against {against} is the evaluation itself; give another model, or the folder of "
            "another evaluation."
        )
    for benchmark, _ in names:
        most = settings.max_new_tokens or benchmark.max_new_tokens
        wanted = {"protocol": PROTOCOL, "limit": settings.limit, "max_new_tokens": most}
        stored = store.read_conditions(folder / benchmark.name)
        if stored:
            _check_alike(benchmark, folder, wanted, {key: stored.get(key) for key in wanted})


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
    if not _has_results(other, parse_benchmarks(benchmarks)):
        other = evaluate(against, benchmarks, settings).output
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
    graded_by = _result(theirs, benchmark).get("judge")
    _check_alike(benchmark, theirs, *map(store.read_conditions, (first, second)))
    if graded_by != judge:
        raise InputError(
            f"the answers to {benchmark.name} in {second} were judged by {graded_by}, here by "
            f"{judge}; give both the same judge."
        )
    records = [store.read_lines(folder / store.ANSWERS) for folder in (first, second)]
    known = all("image" in record for some in records for record in some)
    ours_asked, theirs_asked = (_questions(some, with_images=known) for some in records)
    if ours_asked != theirs_asked:
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


def _has_results(folder: Path, names: Sequence[tuple[Benchmark, str | None]]) -> bool:
    return any((folder / benchmark.name / store.RESULT).is_file() for benchmark, _ in names)


def _result(folder: Path, benchmark: Benchmark) -> dict[str, Any]:
    file = folder / benchmark.name / store.RESULT
    if not file.is_file():
        raise InputError(
            f"{folder} has no result of {benchmark.name}; evaluate it there, or leave it out of "
            "--benchmarks."
        )
    return json.loads(file.read_bytes())


def _check_alike(
    benchmark: Benchmark, theirs: Path, ours: dict[str, Any], stored: dict[str, Any]
) -> None:
    for key in sorted(ours.keys() | stored.keys()):
        if key not in _MAY_DIFFER and ours.get(key) != stored.get(key):
            raise InputError(
                f"the answers to {benchmark.name} in {theirs} were given under another {key} "
                f"({str(stored.get(key))[:60]}, here {str(ours.get(key))[:60]}); evaluate both "
                "alike."
            )


def _questions(records: Sequence[Record], *, with_images: bool) -> list[tuple[Any, ...]]:
    keys = ("row", "prompt", "image") if with_images else ("row", "prompt")
    return [tuple(record[key] for key in keys) for record in records]
