"""`aligntrain eval`: answers, then grades where a judge is asked, then scores, each kept."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from alignshared import InputError
from aligntrain.evaluate.benchmarks import Benchmark, chosen
from aligntrain.evaluate.data import Data, find_data
from aligntrain.evaluate.judge import Judge, judge_all
from aligntrain.evaluate.judged import JUDGED
from aligntrain.evaluate.records import (
    ANSWERS,
    DATA,
    JUDGEMENTS,
    RESULT,
    Appended,
    fingerprint,
    keep_conditions,
    read_lines,
    write_json,
    write_lines,
)
from aligntrain.evaluate.score import Score
from aligntrain.evaluate.submissions import write_submission
from aligntrain.evaluate.table import TABLE, Outcome, comparable, write_table
from aligntrain.evaluate.watch import watched
from aligntrain.load import load_to_answer, model_folder

Asked = Callable[[], tuple[Any, Any]]
_PACKAGES = ("aligntrain", "lmms-eval", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Where the outcomes lie, and what they are, in the order they were asked for."""

    output: Path
    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all benchmarks of an evaluation; see `evaluate`."""

    data: str | Path | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 1
    judge: Judge | None = None
    console: Console | None = None


def evaluate(
    model: str | Path,
    benchmarks: str,
    settings: Settings | None = None,
    *,
    output: str | Path | None = None,
    device: str | None = None,
) -> Evaluation:
    """Ask the model in `model`, a run's folder or its own, the questions of `benchmarks`.

    Answers are greedy, prompts and pictures those of the paper's evaluation. Each benchmark is kept
    below `output` (by default `eval` in `model`) as soon as it is done, each answer as soon as it
    is given; what is there under the same conditions is not done again. With a judge, answers that
    are there are graded without the model.

    Args:
        benchmarks: names by comma, `NAME@REVISION` for a commit of the Hub, `paper` for all twelve.
        settings: `data`, a folder with the benchmarks' files in the place of the Hub; `limit`, how
            many questions of each (pairs and rotations stay whole); `max_new_tokens` in the place
            of the protocol's; `batch_size`; `judge`, for LLaVA-Bench and MM-Vet; `console`, where
            progress is shown.

    Raises:
        InputError: a name is wrong, data is missing, the judge does not answer, the model only
            captions pictures, or lmms-eval is not installed.
    """
    settings = settings or Settings()
    place, wanted = model_folder(model), chosen(benchmarks)
    target = Path(output) if output is not None else Path(model) / "eval"
    _check(settings)
    waiting = [(one, at) for one, at in wanted if not (target / one.name / RESULT).is_file()]
    if settings.judge is not None and any(one.judged for one, _ in wanted):
        settings.judge.ping()
    if waiting:
        _require_engine()
    if settings.data is not None:
        for one, at in waiting:  # what is missing shows before anything is asked
            find_data(one, settings.data, at)
    asked = cache(lambda: _asked(place, device))
    mark = fingerprint(place)
    outcomes: list[Outcome] = []
    for benchmark, revision in wanted:
        folder = target / benchmark.name
        keep_conditions(
            folder,
            {
                "model": mark,
                "limit": settings.limit,
                "max_new_tokens": settings.max_new_tokens or benchmark.max_new_tokens,
            },
        )
        outcomes.append(_outcome(benchmark, revision, folder, settings, asked))
        write_table(outcomes, target / TABLE)
    return Evaluation(target, outcomes)


def _check(settings: Settings) -> None:
    for name in ("limit", "max_new_tokens", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"{name} {value} cannot be: give 1 or more.")


def _require_engine() -> None:
    if find_spec("lmms_eval") is None:
        raise InputError(
            "the benchmarks are asked by lmms-eval, which is not installed; install it with "
            "`pip install 'aligntrain[eval]'`, or here `uv sync --group eval`."
        )


def _asked(place: Path, device: str | None) -> tuple[Any, Any]:
    from aligntrain.answering import captions_only

    model, processor = load_to_answer(place, device=device)
    if captions_only(processor):
        raise InputError(
            f"the model in {place} is pretrained and only captions pictures; give a fine-tuned one."
        )
    return model, processor


def _outcome(
    benchmark: Benchmark, revision: str | None, folder: Path, settings: Settings, asked: Asked
) -> Outcome:
    result_file = folder / RESULT
    if result_file.is_file():
        result = json.loads(result_file.read_bytes())
        if benchmark.judged and settings.judge is None:
            return Outcome(benchmark, result)  # graded by whom it was, or not yet
        records = read_lines(folder / ANSWERS)
    else:
        data = find_data(benchmark, settings.data, revision)
        records = _answered(benchmark, data, folder, settings, asked)
        result = _facts(benchmark, data, settings, asked)
        submission = write_submission(benchmark.name, records, folder, data.folder)
        result["submission"] = submission
    if benchmark.judged:
        _judge(benchmark, folder, records, settings)
        result["judge"] = settings.judge.model if settings.judge else None
    score = _score(benchmark, records)
    for record, points in zip(records, score.points, strict=True):
        record["score"] = points
    write_lines(folder / ANSWERS, records)
    notes = [*score.notes, *([result["submission"]] if result.get("submission") else [])]
    result |= {"score": score.value, "details": score.details, "questions": len(records)}
    result |= {"notes": notes, "comparable": comparable(benchmark, result)}
    write_json(result_file, result)
    return Outcome(benchmark, result)


def _answered(
    benchmark: Benchmark, data: Data, folder: Path, settings: Settings, asked: Asked
) -> list[dict[str, Any]]:
    """The benchmark's answers with the facts that its scorer needs, kept in `folder`."""
    from aligntrain.evaluate.engine import answer_benchmark

    sizes = {Path(file).name: Path(file).stat().st_size for file in data.files}
    keep_conditions(folder, {"revision": data.revision, "files": sizes}, DATA)
    answers = Appended(folder / ANSWERS)
    facts = answer_benchmark(
        benchmark,
        data,
        asked(),
        answers,
        limit=settings.limit,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        console=settings.console,
    )
    by_row = {line["row"]: line for line in answers.lines}
    return [{**by_row[row], "facts": known} for row, known in enumerate(facts)]


def _facts(benchmark: Benchmark, data: Data, settings: Settings, asked: Asked) -> dict[str, Any]:
    published = benchmark.published
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "metric": benchmark.metric,
        "data": data.source,
        "revision": data.revision,
        "limit": settings.limit,
        "max_new_tokens": settings.max_new_tokens or benchmark.max_new_tokens,
        "batch_size": settings.batch_size,
        "precision": str(asked()[0].dtype).removeprefix("torch."),
        "published": published and {"llava": published.llava, "aligngpt": published.aligngpt},
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _judge(
    benchmark: Benchmark, folder: Path, records: list[dict[str, Any]], settings: Settings
) -> None:
    """Have each of `records` graded that the judge has not graded yet; grades are kept."""
    for record in records:
        record.pop("grade", None)
    if settings.judge is None:
        return
    kept = Appended(folder / JUDGEMENTS)
    of_judge = [line for line in kept.lines if line["judge"] == settings.judge.model]
    grades = {line["row"]: line["grade"] for line in of_judge if line["grade"] is not None}
    left = [record for record in records if record["row"] not in grades]
    said = judge_all(settings.judge, JUDGED[benchmark.name], left)
    title = f"{benchmark.name}, judged"
    for line in watched(said, title, len(left), settings.console):
        kept.append(line)
        grades[line["row"]] = line["grade"]
    for record in records:
        record["grade"] = grades.get(record["row"])


def _score(benchmark: Benchmark, records: list[dict[str, Any]]) -> Score:
    if benchmark.judged:
        return JUDGED[benchmark.name].score(records)
    if benchmark.score is None:
        return Score(None, [None] * len(records), notes=["its server alone knows the answers"])
    return benchmark.score(records)
