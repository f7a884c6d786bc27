"""`aligntrain eval`: answers, then grades where a judge is asked, then scores, each kept."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from alignshared import InputError, atomic
from aligntrain.evaluate.benchmarks import BENCHMARKS, Benchmark, chosen
from aligntrain.evaluate.data import Data, fetched, find_data
from aligntrain.evaluate.judge import JUDGED, Judge, judge_all
from aligntrain.evaluate.prompts import PROTOCOL
from aligntrain.evaluate.scorers import Score
from aligntrain.evaluate.store import (
    ANSWERS,
    JUDGEMENTS,
    RESULT,
    Appended,
    check_conditions,
    fingerprint,
    keep_conditions,
    kept_conditions,
    read_lines,
    write_json,
    write_lines,
    write_submission,
)
from aligntrain.inference.load import load_to_answer, model_folder
from aligntrain.progress import watched

TABLE = "table.md"
HEADINGS = (
    "benchmark", "metric", "questions", "score", "LLaVA-1.5-7B", "AlignGPT-7B", "reruns differ by",
    "comparable",
)  # fmt: skip
NO_SCORE = "no score"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One benchmark's: `result` is what its `result.json` holds."""

    benchmark: Benchmark
    result: dict[str, Any]

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Outcome":
        """That which `result.json` holds."""
        return cls(BENCHMARKS[result["benchmark"]], result)

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table, as `HEADINGS` names its cells."""
        benchmark, published = self.benchmark, self.benchmark.published
        return (
            benchmark.title,
            benchmark.metric,
            f"{self.result['questions']:,}",
            "–" if self.result["score"] is None else f"{self.result['score']:.1f}",
            "–" if published is None else f"{published.llava:.1f}",
            "–" if published is None else f"{published.aligngpt:.1f}",
            "–" if published is None or not published.noise else published.noise,
            self.result["comparable"],
        )


def comparable(benchmark: Benchmark, result: dict[str, Any]) -> str:
    """Whether `result` stands for the same as the published values: yes, nearly or no, and why."""
    published, questions = benchmark.published, result["questions"]
    if result["score"] is None:
        return NO_SCORE
    if benchmark.not_comparable or published is None:
        return f"no: {benchmark.not_comparable}"
    if result["limit"] is not None:
        return f"no: the first {questions:,} questions"
    if result["max_new_tokens"] != benchmark.max_new_tokens:
        return f"no: answers of at most {result['max_new_tokens']:,} tokens"
    if questions == published.questions:
        return "yes"
    if benchmark.edition is not None and questions == benchmark.edition[0]:
        return f"nearly: {benchmark.edition[1]}"
    return f"no: {questions:,} of {published.questions:,} questions"


def write_table(outcomes: list[Outcome], file: Path) -> None:
    """The table in Markdown, with the notes under it."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(one.cells for one in outcomes)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [
        f"- {one.benchmark.title}: {note}." for one in outcomes for note in one.result["notes"]
    ]
    atomic.write(file, "\n".join([*lines, "", *notes]).rstrip() + "\n")


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
        InputError: a name is wrong, data is missing, what is kept was given under other conditions,
            the judge does not answer, the model only captions pictures, lmms-eval is not installed,
            or a launcher has started several processes.
    """
    settings = settings or Settings()
    place, wanted = model_folder(model), chosen(benchmarks)
    target = Path(output) if output is not None else Path(model) / "eval"
    _check(settings)
    if settings.judge is not None and any(one.judged for one, _ in wanted):
        settings.judge.ping()
    if not all((target / one.name / RESULT).is_file() for one, _ in wanted):
        _require_engine()
    mark = fingerprint(place)
    # What is missing, or does not belong together, shows before anything is asked.
    tasks = [_task(one, at, target / one.name, mark, settings) for one, at in wanted]
    asked = cache(lambda: _asked(place, device))
    outcomes: list[Outcome] = []
    for task in tasks:
        outcomes.append(_outcome(task, settings, asked))
        write_table(_all_of(mark, target), target / TABLE)
    return Evaluation(target, outcomes)


def _all_of(model: str, target: Path) -> list[Outcome]:
    """What `target` holds of the model with that fingerprint, earlier calls' too, as they are
    listed in the paper's table.
    """
    folders = [target / name for name in BENCHMARKS]
    return [
        Outcome.of(json.loads((folder / RESULT).read_bytes()))
        for folder in folders
        if (folder / RESULT).is_file() and kept_conditions(folder).get("model") == model
    ]


@dataclass(frozen=True, slots=True)
class _Task:
    """A benchmark to be done in `folder`, under `conditions`; `data` is None where it is answered
    already.
    """

    benchmark: Benchmark
    folder: Path
    conditions: dict[str, Any]
    data: Data | None


def _task(
    benchmark: Benchmark, revision: str | None, folder: Path, mark: str, settings: Settings
) -> _Task:
    """How `benchmark` is to be done.

    Raises:
        InputError: its data is missing, or `folder` holds answers under other conditions.
    """
    conditions = {
        "model": mark,
        "protocol": PROTOCOL,
        "limit": settings.limit,
        "max_new_tokens": settings.max_new_tokens or benchmark.max_new_tokens,
    }
    check_conditions(folder, conditions)
    done, kept = (folder / RESULT).is_file(), kept_conditions(folder).get("revision")
    if done and settings.data is None and revision in (None, kept):
        return _Task(benchmark, folder, conditions, None)
    data = find_data(benchmark, settings.data, revision or kept)
    check_conditions(folder, data.mark)
    return _Task(benchmark, folder, conditions | data.mark, None if done else data)


def _check(settings: Settings) -> None:
    for name in ("limit", "max_new_tokens", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"{name} {value} cannot be: give 1 or more.")
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise InputError(
            f"the benchmarks are asked by one process, and a launcher started {processes} "
            "(WORLD_SIZE); start one for each GPU by itself, with CUDA_VISIBLE_DEVICES set and "
            "other benchmarks for each."
        )


def _require_engine() -> None:
    if find_spec("lmms_eval") is None:
        raise InputError(
            "the benchmarks are asked by lmms-eval, which is not installed; install it with "
            "`pip install 'aligntrain[eval]'`, or here `uv sync --group eval`."
        )


def _asked(place: Path, device: str | None) -> tuple[Any, Any]:
    from aligntrain.inference.generate import captions_only

    model, processor = load_to_answer(place, device=device)
    if captions_only(processor):
        raise InputError(
            f"the model in {place} is pretrained and only captions pictures; give a fine-tuned one."
        )
    return model, processor


def _outcome(task: _Task, settings: Settings, asked: Asked) -> Outcome:
    benchmark, folder = task.benchmark, task.folder
    if task.data is None:
        result = json.loads((folder / RESULT).read_bytes())
        if benchmark.judged and settings.judge is None:
            return Outcome(benchmark, result)  # graded by whom it was, or not yet
        records = read_lines(folder / ANSWERS)
    else:
        data = fetched(benchmark, task.data)
        records = _answered(task, data, settings, asked)
        result = _facts(benchmark, data, settings, asked)
    submission = write_submission(benchmark.name, records, folder, settings.data)
    if benchmark.judged:
        _judge(benchmark, folder, records, settings)
        result["judge"] = settings.judge.model if settings.judge else None
    score = _score(benchmark, records)
    for record, points in zip(records, score.points, strict=True):
        record["score"] = points
    write_lines(folder / ANSWERS, records)
    notes = [*score.notes, *([submission] if submission else [])]
    result |= {"score": score.value, "details": score.details, "questions": len(records)}
    result |= {"notes": notes, "comparable": comparable(benchmark, result)}
    write_json(folder / RESULT, result)
    return Outcome(benchmark, result)


def _answered(task: _Task, data: Data, settings: Settings, asked: Asked) -> list[dict[str, Any]]:
    """The benchmark's answers with the facts that its scorer needs, kept in its folder."""
    from aligntrain.evaluate.lmms_eval import answer_benchmark

    keep_conditions(task.folder, {**task.conditions, "precision": _precision(asked)})
    answers = Appended(task.folder / ANSWERS)
    facts = answer_benchmark(
        task.benchmark,
        data,
        asked(),
        answers,
        limit=settings.limit,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        console=settings.console,
    )
    by_row = {line["row"]: line for line in answers.lines}  # the last of a row is the valid one
    return [{**by_row[row], "facts": known} for row, known in enumerate(facts)]


def _precision(asked: Asked) -> str:
    return str(asked()[0].dtype).removeprefix("torch.")


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
        "precision": _precision(asked),
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
