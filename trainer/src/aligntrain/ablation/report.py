"""The report of an ablation: Markdown, JSON, CSV, and a figure."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
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
from aligntrain.ablation.questions import QuestionSet
from aligntrain.ablation.runs import Ablation
from aligntrain.charts import Axis
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
        content[FIGURE] = draw(outcome.comparisons)
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


_PANEL, _GAP, _ROW, _TOP, _BOTTOM = 260, 30, 26, 46, 40
"""In pixels: width of a panel, the space between, a row, and what is above and below the rows."""

_ACROSS, _LETTER, _TITLE, _LEGEND = 3, 7, 36, 44
"""Panels side by side; width of a letter in pixels, letters of a title, height of the legend."""

_INK, _MUTED, _RULE = "#1f1e1b", "#67645c", "#d9d5ca"
_COLOURS = {"better": "#2f7f86", "worse": "#b5523b"}
_SAID = (
    "dots: mean of the seeds with its 95 % interval; small: single seeds",
    "blue: better; red: worse; grey: within noise, or too few seeds to say",
)


def draw(comparisons: Sequence[Comparison]) -> str:
    """An SVG with a panel for each of `comparisons`: of every variant the mean difference from the
    baseline, its interval where there are seeds enough to judge it, and the single seeds as small
    dots.
    """
    lines = [line for comparison in comparisons for line in comparison.lines]
    names = list(dict.fromkeys(line.variant for line in lines if line.difference is not None))
    labels = 24 + _LETTER * max((len(name) for name in names), default=12)
    tall = _TOP + _ROW * max(len(names), 1) + _BOTTOM
    width = labels + min(len(comparisons), _ACROSS) * (_PANEL + _GAP)
    height = tall * -(-len(comparisons) // _ACROSS) + _LEGEND
    width = max(width, 440)  # of the legend
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, comparison in enumerate(comparisons):
        down, across = divmod(number, _ACROSS)
        top = tall * down
        if not across:
            parts += _names(names, labels, top)
        left = labels + across * (_PANEL + _GAP)
        parts.append(f'<g transform="translate(0 {top})">')
        parts += [*_panel(comparison, names, left, tall), "</g>"]
    for number, said in enumerate(_SAID):
        y = height - _LEGEND + 16 * (number + 1)
        parts.append(f'<text x="12" y="{y}" font-size="11" fill="{_MUTED}">{said}</text>')
    return "".join([*parts, "</svg>\n"])


def _names(names: Sequence[str], labels: float, top: float) -> list[str]:
    middles = (top + _TOP + _ROW * (row + 0.5) + 4 for row in range(len(names)))
    return [
        f'<text x="{labels - 12}" y="{y}" text-anchor="end" fill="{_INK}">{escape(name)}</text>'
        for name, y in zip(names, middles, strict=True)
    ]


def _panel(comparison: Comparison, names: Sequence[str], left: float, height: float) -> list[str]:
    scale = 1 if comparison.lower_is_better else 100
    base = next((line.values for line in comparison.lines if line.verdict == "baseline"), {})
    lines = {line.variant: line for line in comparison.lines if line.difference is not None}
    spread = [
        scale * value for line in lines.values() for value in (*_single(line, base), *_ends(line))
    ]
    axis = Axis.over([0.0, *spread], about=6)
    bottom = height - _BOTTOM
    zero = left + axis.at(0.0) * _PANEL / 100
    title, unit = _title(comparison)
    parts = [
        f'<text x="{left}" y="18" font-weight="600" fill="{_INK}">{escape(title)}</text>',
        f'<text x="{left}" y="34" font-size="11" fill="{_MUTED}">{escape(unit)}</text>',
    ]
    for at, label in axis.ticks:
        x = left + at * _PANEL / 100
        parts.append(_line(x, _TOP, x, bottom, _RULE, 1))
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" font-size="11" '
            f'fill="{_MUTED}">{label}</text>'
        )
    parts.append(_line(zero, _TOP, zero, bottom, _INK, 1.5))
    for row, name in enumerate(names):
        if name in lines:
            y = _TOP + _ROW * (row + 0.5)
            parts += _row(lines[name], base, axis, left, y, scale)
    return parts


def _row(
    line: Line, base: dict[int, float], axis: Axis, left: float, y: float, scale: int
) -> list[str]:
    def x(value: float) -> float:
        return left + axis.at(scale * value) * _PANEL / 100

    assert line.difference is not None
    colour = _COLOURS.get(line.verdict, _MUTED)
    parts = [_dot(x(value), y + 8, 2.2, _RULE, "#8f8a7e") for value in _single(line, base)]
    _, *ends = _ends(line)
    if ends:
        parts.append(_line(x(ends[0]), y, x(ends[1]), y, colour, 2))
    return [*parts, _dot(x(line.difference.mean), y, 5, colour, "#fff")]


def _single(line: Line, base: dict[int, float]) -> list[float]:
    return [value - base[seed] for seed, value in line.values.items() if seed in base]


def _ends(line: Line) -> list[float]:
    """The mean, and the ends of its interval where that is judged: of two seeds it would be so wide
    that nothing else could be seen.
    """
    d = line.difference
    if d is None:
        return []
    ends = (d.low, d.high) if d.count >= LEAST_SEEDS else ()
    return [d.mean, *(end for end in ends if end is not None)]


def _title(comparison: Comparison) -> tuple[str, str]:
    title = comparison.metric
    if len(title) > _TITLE:
        title = f"{title[: _TITLE - 1]}…"
    if comparison.lower_is_better:
        return title, "difference in nats a token; left is better"
    return title, "difference in percentage points; right is better"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def _dot(x: float, y: float, radius: float, fill: str, edge: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{edge}"/>'
