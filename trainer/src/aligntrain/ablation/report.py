"""The report of an ablation: Markdown, JSON, CSV, and a figure."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignshared import atomic
from aligntrain.ablation.compare import (
    LEAST_SEEDS,
    RIGHT,
    RIGHT_ALL,
    Comparison,
    Line,
    expected_by_chance,
)
from aligntrain.ablation.figure import draw
from aligntrain.ablation.questions import QuestionSet
from aligntrain.ablation.runs import Ablation
from aligntrain.charts import svg
from aligntrain.evaluate.intervals import Interval
from aligntrain.evaluate.short_answers import ALL, constant_answers
from aligntrain.runs.folder import versions_of

REPORT = "ablation.md"
FIGURE = "ablation.svg"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results of an ablation: `comparisons` by metric, the reason of each `failed` run by its name,
    and the names of `unasked` runs, whose models were gone before they could be asked.
    """

    ablation: Ablation
    question_set: QuestionSet
    comparisons: list[Comparison]
    failed: dict[str, str]
    unasked: list[str]


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write `ablation.md`, `.json`, `.csv` and `.svg` into `folder`, each whole."""
    content = {
        REPORT: markdown(outcome),
        "ablation.json": json.dumps(_plain(outcome), indent=1, ensure_ascii=False) + "\n",
        "ablation.csv": _csv(outcome.comparisons),
    }
    if outcome.comparisons:
        content[FIGURE] = svg(draw(outcome.comparisons))
    for name, text in content.items():
        atomic.write(folder / name, text)


def markdown(outcome: Outcome) -> str:
    """Return the report: introduction, a table for each metric, unasked runs, and failures."""
    lines = [f"# Ablation {outcome.ablation.design.name}", "", _introduction(outcome)]
    chance = expected_by_chance(outcome.comparisons)
    if chance:
        lines.append(
            f"Were there no differences at all, about {chance:.1f} of those judged here would yet "
            "be called better or worse."
        )
    if not outcome.question_set.questions:
        lines += ["", "No question was asked: nothing with a short answer is held out."]
    if outcome.comparisons:
        lines += ["", f"![Differences by variant]({FIGURE})"]
    kinds = kinds_of(outcome)
    for comparison in outcome.comparisons:
        title = _escaped(heading(comparison, kinds))
        lines += ["", f"## {title}", "", *_table(comparison)]
    if outcome.unasked:
        lines += ["", "## Not asked", "", "Their models were not kept before there were questions."]
        lines += ["", *(f"- `{name}`" for name in outcome.unasked)]
    if outcome.failed:
        lines += ["", "## Failed", ""]
        lines += [f"- `{name}`: {_escaped(reason)}" for name, reason in outcome.failed.items()]
    made = [f"{package} {' and '.join(v)}" for package, v in _versions(outcome.ablation).items()]
    if made:
        lines += ["", f"The runs were made with {', '.join(made)}."]
    return "\n".join(lines) + "\n"


def _introduction(outcome: Outcome) -> str:
    ablation = outcome.ablation
    variants = {run.variant for run in ablation.runs if run.phase == "finetune"}
    seeds = len(ablation.seeds)
    return (
        f"Recipe `{ablation.design.recipe}`, {len(variants)} "
        f"variant{'s' if len(variants) > 1 else ''}, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{sum(run.finished for run in ablation.runs)} of {len(ablation.runs)} runs are "
        f"finished. Differences are from `{ablation.design.baseline}`, paired by seed. In brackets "
        "the 95 % interval of the mean by Student's t; a difference whose interval holds 0 is "
        f"within noise, and fewer than {LEAST_SEEDS} pairs are too few to say. The noise is that "
        "of the seeds: how far other questions or other held-out rows would have moved the numbers "
        "is not in the intervals."
    )


def kinds_of(outcome: Outcome) -> dict[str, tuple[int, int]]:
    """Return, by kind and for all, the number of questions and how many of them the best constant
    answer to each kind gets right.
    """
    kinds = constant_answers(outcome.question_set.questions)
    count, right = (sum(numbers[at] for numbers in kinds.values()) for at in (0, 1))
    return {ALL: (count, right)} | kinds


def heading(comparison: Comparison, kinds: Mapping[str, tuple[int, int]]) -> str:
    """Return metric and unit of `comparison`; `kinds` come from `kinds_of`."""
    if comparison.lower_is_better:
        return f"{comparison.metric.capitalize()} (nats a token, less is better)"
    kind = comparison.metric.removeprefix(RIGHT)
    count, right = kinds[kind]
    to = " to each kind" if comparison.metric == RIGHT_ALL else ""
    return (
        f"Right answers, {kind} ({count} questions, percent; the best constant answer{to} has "
        f"{100 * right / count:.1f})"
    )


def _versions(ablation: Ablation) -> dict[str, list[str]]:
    """Return the versions of each package that the started runs were made with."""
    versions: dict[str, set[str]] = {}
    for run in ablation.runs:
        if run.begun:
            for package, version in versions_of(run.folder).items():
                versions.setdefault(package, set()).add(version)
    return {package: sorted(several) for package, several in versions.items()}


def _table(comparison: Comparison) -> list[str]:
    scale, digits = (1, 4) if comparison.lower_is_better else (100, 1)
    rows = [
        "| variant | seeds | mean | difference | verdict |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for line in comparison.lines:
        difference = "" if line.difference is None else _cell(line.difference, scale, digits, "+")
        mean = _cell(line.mean, scale, digits)
        cells = [f"`{line.variant}`", f"{len(line.values)}", mean, difference, line.verdict]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _cell(value: Interval, scale: int, digits: int, sign: str = "") -> str:
    mean = f"{scale * value.mean:{sign}.{digits}f}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} ({scale * value.low:{sign}.{digits}f} to {scale * value.high:{sign}.{digits}f})"


def _escaped(text: str) -> str:
    clean = " ".join(text.split())
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


def _plain(outcome: Outcome) -> dict[str, Any]:
    ablation = outcome.ablation
    return {
        "name": ablation.design.name,
        "recipe": ablation.design.recipe,
        "baseline": ablation.design.baseline,
        "seeds": ablation.seeds,
        "pretrain_data": ablation.pretrain_data,
        "finetune_data": ablation.finetune_data,
        "questions": {
            "file": outcome.question_set.file,
            "sha256": outcome.question_set.sha256,
            "kinds": {
                kind: {"asked": count, "constant": right / count}
                for kind, (count, right) in constant_answers(outcome.question_set.questions).items()
            },
        },
        "runs": {
            run.name: {"seconds": run.seconds, "start": run.start and run.start.name}
            for run in ablation.runs
        },
        "comparisons": [asdict(comparison) for comparison in outcome.comparisons],
        "unasked": outcome.unasked,
        "failed": outcome.failed,
        "versions": _versions(ablation),
    }


def _csv(comparisons: Sequence[Comparison]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "variant", "seed", "value"])
    for comparison in comparisons:
        for line in comparison.lines:
            writer.writerows(_rows(comparison.metric, line))
    return text.getvalue()


def _rows(metric: str, line: Line) -> list[list[Any]]:
    return [[metric, line.variant, seed, value] for seed, value in sorted(line.values.items())]
