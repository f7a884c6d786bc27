"""`aligntrain eval`: generate, judge and score answers, storing each step."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alignshared import InputError, atomic
from alignshared.console import watched
from aligntrain.evaluate import store
from aligntrain.evaluate.benchmarks import BENCHMARKS, PROTOCOL, Benchmark, parse_benchmarks
from aligntrain.evaluate.data import Data, fetch, find_data, images_of, read_rows, without_images
from aligntrain.evaluate.judge import JUDGED, Judge, judge_all
from aligntrain.evaluate.uncertainty import uncertainty
from aligntrain.inference.load import beside_model, load_for_inference, model_folder

if TYPE_CHECKING:
    from aligntrain.model.modeling import AlignGPTForConditionalGeneration
    from aligntrain.model.processing import AlignGPTProcessor

TABLE = "table.md"
HEADINGS = (
    "benchmark", "metric", "questions", "score", "95 % interval", "LLaVA-1.5-7B", "AlignGPT-7B",
    "reruns differ by", "comparable",
)  # fmt: skip

Loader = Callable[[], tuple["AlignGPTForConditionalGeneration", "AlignGPTProcessor"]]
"""Function that loads model and processor once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Benchmark with the content of its `result.json`."""

    benchmark: Benchmark
    result: dict[str, Any]

    @property
    def cells(self) -> tuple[str, ...]:
        """Cells of the table's row, in the order of `HEADINGS`."""
        benchmark, published, result = self.benchmark, self.benchmark.published, self.result
        interval = result.get("interval")  # results of older versions have none
        values = (published and published.llava, published and published.aligngpt)
        return (
            benchmark.title,
            benchmark.metric,
            f"{result['questions']:,}",
            "–" if result["score"] is None else f"{result['score']:.1f}",
            "–" if interval is None else f"{interval['low']:.1f} to {interval['high']:.1f}",
            *("–" if value is None else f"{value:.1f}" for value in values),
            (published and published.noise) or "–",
            result["comparable"],
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Output folder, and the outcomes in the order of the request."""

    output: Path
    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of all benchmarks of an evaluation; see `evaluate`."""

    data: str | Path | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    level: int | None = None
    batch_size: int = 1
    judge: Judge | None = None
    console: Console | None = None


def results_folder(model: str | Path, output: str | Path | None = None) -> Path:
    """Return the folder of the results of `model`: `output`, by default `eval` in the model's."""
    return beside_model(model, "eval") if output is None else Path(output)


def evaluate(
    model: str | Path,
    benchmarks: str,
    settings: Settings | None = None,
    *,
    output: str | Path | None = None,
    device: str | None = None,
) -> Evaluation:
    """Evaluate the model in `model`, a run's folder or its own, on `benchmarks`.

    Answers are greedy; prompts and images are those of the paper's evaluation. Each answer is
    stored below `output` (by default `eval` in `model`) as soon as it is given, and finished work
    is not repeated under the same conditions. A judge grades stored answers without the model.

    Args:
        benchmarks: names by comma, `NAME@REVISION` for a commit of the Hub, `paper` for all twelve.
        settings: `data`, a folder with the benchmarks' files instead of the Hub; `limit`, questions
            of each benchmark (pairs and rotations stay whole); `max_new_tokens` instead of the
            protocol's; `level`, whose vector is forced instead of the mix; `batch_size`; `judge`,
            for LLaVA-Bench and MM-Vet; `console` for progress.

    Raises:
        InputError: a name is wrong, data or a package is missing, stored answers were given under
            other conditions, the judge does not answer, the model only captions images or has no
            such level, or a launcher has started several processes.
    """
    settings = settings or Settings()
    target, selected = results_folder(model, output), parse_benchmarks(benchmarks)
    folder = model_folder(model)
    _check(settings)
    if settings.judge is not None and any(benchmark.judged for benchmark, _ in selected):
        _require("openai")
        settings.judge.ping()
    if not all((target / benchmark.name / store.RESULT).is_file() for benchmark, _ in selected):
        _require("datasets")
    model_id = store.fingerprint(folder)
    # Plan all tasks first: missing data must show before any generation.
    tasks = [
        _plan(benchmark, revision, target / benchmark.name, model_id, settings)
        for benchmark, revision in selected
    ]
    load = cache(lambda: _load(folder, device, settings.level))
    outcomes: list[Outcome] = []
    for task in tasks:
        outcomes.append(Outcome(task.benchmark, _run(task, settings, load)))
        # Results of the model in this folder, also of earlier calls, in the paper's order.
        stored = [
            Outcome(benchmark, json.loads((target / name / store.RESULT).read_bytes()))
            for name, benchmark in BENCHMARKS.items()
            if (target / name / store.RESULT).is_file()
            and store.read_conditions(target / name).get("model") == model_id
        ]
        _write_table(stored, target / TABLE)
    return Evaluation(target, outcomes)


@dataclass(frozen=True, slots=True)
class _Task:
    """Benchmark to run in `folder` under `conditions`; `data` is None if already answered."""

    benchmark: Benchmark
    folder: Path
    conditions: dict[str, Any]
    data: Data | None

    @property
    def max_new_tokens(self) -> int:
        """Maximum tokens of an answer."""
        return self.conditions["max_new_tokens"]


def _plan(
    benchmark: Benchmark, revision: str | None, folder: Path, model_id: str, settings: Settings
) -> _Task:
    """Plan the run of `benchmark`.

    Raises:
        InputError: its data is missing, or `folder` holds answers under other conditions.
    """
    conditions = {
        "model": model_id,
        "protocol": PROTOCOL,
        "limit": settings.limit,
        "max_new_tokens": settings.max_new_tokens or benchmark.max_new_tokens,
        "level": settings.level,
    }
    store.check_conditions(folder, conditions)
    done, stored = (folder / store.RESULT).is_file(), store.read_conditions(folder).get("revision")
    if done and settings.data is None and revision in (None, stored):
        return _Task(benchmark, folder, conditions, None)
    data = find_data(benchmark, settings.data, revision or stored)
    store.check_conditions(folder, data.identity)
    return _Task(benchmark, folder, conditions | data.identity, None if done else data)


def _check(settings: Settings) -> None:
    for name in ("limit", "max_new_tokens", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1 (got {value}).")
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise InputError(
            f"an evaluation is a single process, but a launcher started {processes} (WORLD_SIZE); "
            "start one for each GPU by itself, with CUDA_VISIBLE_DEVICES set and other benchmarks "
            "for each."
        )


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise InputError(
            f"the benchmarks need the package {package}, which is not installed; install it with "
            "`pip install 'aligntrain[eval]'`, or here `uv sync --group eval`."
        )


def _load(
    folder: Path, device: str | None, level: int | None
) -> "tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]":
    from aligntrain.inference.generate import captions_only
    from aligntrain.inference.steering import check_steering

    model, processor = load_for_inference(folder, device=device)
    if captions_only(processor):
        raise InputError(
            f"the model in {folder} is pretrained and only captions images; give a fine-tuned one."
        )
    check_steering(model.config, level)
    return model, processor


def _run(task: _Task, settings: Settings, load: Loader) -> dict[str, Any]:
    """Answer, judge and score the questions of `task`, as far as needed; return its result."""
    benchmark, folder = task.benchmark, task.folder
    if task.data is None:
        result = json.loads((folder / store.RESULT).read_bytes())
        if benchmark.judged and settings.judge is None:
            return result  # keep the grades of the last judge, if any
        records = store.read_lines(folder / store.ANSWERS)
    else:
        data = fetch(benchmark, task.data)
        precision = str(load()[0].dtype).removeprefix("torch.")
        store.write_conditions(folder, {**task.conditions, "precision": precision})
        records = _answer(task, data, settings, load)
        published = benchmark.published
        result: dict[str, Any] = {
            "benchmark": benchmark.name,
            "title": benchmark.title,
            "metric": benchmark.metric,
            "data": data.source,
            "revision": data.revision,
            "limit": settings.limit,
            "max_new_tokens": task.max_new_tokens,
            "level": settings.level,
            "batch_size": settings.batch_size,
            "precision": precision,
            "published": published and {"llava": published.llava, "aligngpt": published.aligngpt},
            "versions": store.versions(),
        }
    submission = store.write_submission(benchmark.name, records, folder, settings.data)
    if benchmark.judged:
        _judge(task, records, settings)
        result["judge"] = settings.judge.model if settings.judge else None
    score = benchmark.score(records)
    for record, points in zip(records, score.points, strict=True):
        record["score"] = points
    store.write_lines(folder / store.ANSWERS, records)
    notes = [*score.notes, *([submission] if submission else [])]
    interval = uncertainty(score, records)
    result |= {"score": score.value, "interval": interval and asdict(interval)}
    result |= {"details": score.details, "questions": len(records)}
    result |= {"notes": notes, "comparable": _comparable(benchmark, result)}
    store.write_json(folder / store.RESULT, result)
    return result


def _answer(task: _Task, data: Data, settings: Settings, load: Loader) -> list[dict[str, Any]]:
    """Answer the rows without a stored answer to the same prompt; return all, with scorer facts."""
    from datasets import disable_progress_bars

    from aligntrain.inference.generate import Question, generate_answers, messages_of

    if settings.console is None or not settings.console.is_terminal:
        disable_progress_bars()
    benchmark = task.benchmark
    rows, lookup = read_rows(benchmark, data, settings.limit)
    texts = without_images(rows)
    prompts = [benchmark.prompt(row) for row in texts]
    log = store.JsonlLog(task.folder / store.ANSWERS)
    asked = dict(enumerate(prompts))
    records = {line["row"]: line for line in log.lines if asked.get(line["row"]) == line["prompt"]}
    waiting = [row for row in asked if row not in records]

    seen: dict[int, str] = {}

    def question(row: int) -> Question:
        images = images_of(dict(rows[row]), lookup)
        seen[row] = store.digest_of(images)
        name = f"{benchmark.name}, row {row}"
        return Question(messages_of(prompts[row], images), settings.level, name)

    answers = generate_answers(
        *load(),
        map(question, waiting),
        max_new_tokens=task.max_new_tokens,
        batch_size=settings.batch_size,
        shorten=True,
    )
    progress = watched(waiting, benchmark.name, len(waiting), settings.console)
    for row, answer in zip(progress, answers, strict=True):
        records[row] = {
            "row": row,
            "prompt": prompts[row],
            "image": seen[row],
            "text": answer.text,
            "tokens": answer.tokens,
            "finished": answer.finished,
            "gate_weights": answer.gate_weights,
        }
        log.append(records[row])
    return [{**records[index], "facts": benchmark.facts(row)} for index, row in enumerate(texts)]


def _judge(task: _Task, records: list[dict[str, Any]], settings: Settings) -> None:
    """Add the judge's grade to each of `records`, requesting only missing grades."""
    for record in records:
        record.pop("grade", None)
    judge, name = settings.judge, task.benchmark.name
    if judge is None:
        return
    log = store.JsonlLog(task.folder / store.JUDGEMENTS)
    lines = [line for line in log.lines if line["judge"] == judge.model]
    grades = {line["row"]: line["grade"] for line in lines if line["grade"] is not None}
    left = [record for record in records if record["row"] not in grades]
    judgements = judge_all(judge, JUDGED[name], left)
    for line in watched(judgements, f"{name}, judged", len(left), settings.console):
        log.append(line)
        grades[line["row"]] = line["grade"]
    for record in records:
        record["grade"] = grades.get(record["row"])


def _comparable(benchmark: Benchmark, result: dict[str, Any]) -> str:
    """Return whether `result` compares with the published values (yes, nearly or no), and why."""
    published, questions = benchmark.published, result["questions"]
    if result["score"] is None:
        return "no score"
    if benchmark.not_comparable or published is None:
        return f"no: {benchmark.not_comparable}"
    if result["limit"] is not None:
        return f"no: the first {questions:,} questions"
    if result["max_new_tokens"] != benchmark.max_new_tokens:
        return f"no: answers of at most {result['max_new_tokens']:,} tokens"
    if result.get("level") is not None:
        return f"no: level {result['level']} forced"
    if questions == published.questions:
        return "yes"
    if benchmark.edition is not None and questions == benchmark.edition[0]:
        return f"nearly: {benchmark.edition[1]}"
    return f"no: {questions:,} of {published.questions:,} questions"


def _write_table(outcomes: list[Outcome], file: Path) -> None:
    """Write the table in Markdown with the notes below it."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(outcome.cells for outcome in outcomes)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [
        f"- {outcome.benchmark.title}: {note}."
        for outcome in outcomes
        for note in outcome.result["notes"]
    ]
    atomic.write(file, "\n".join([*lines, "", *notes]).rstrip() + "\n")
