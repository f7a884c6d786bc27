"""The report of an ablation: Markdown, JSON, CSV, and a figure."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from alignshared import atomic
from alignshared.palette import INK, MUTED, PAPER, RULE
from aligntrain.ablation.compare import (
    BASELINE,
    LEAST_SEEDS,
    RIGHT,
    RIGHT_ALL,
    Comparison,
    expected_by_chance,
)
from aligntrain.ablation.runs import Ablation
from aligntrain.ablation.score import QuestionSet
from aligntrain.charts import TEAL, new_figure, plain_axes, svg
from aligntrain.evaluate.intervals import Interval
from aligntrain.evaluate.short_answers import ALL, constant_answers
from aligntrain.runs.folder import versions_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def write_outcome(outcome: Outcome) -> None:
    """Write `ablation.md`, `.json`, `.csv` and `.svg` into the ablation's folder, each whole."""
    content = {
        REPORT: _markdown(outcome),
        "ablation.json": json.dumps(_plain(outcome), indent=1, ensure_ascii=False) + "\n",
        "ablation.csv": _csv(outcome.comparisons),
    }
    if outcome.comparisons:
        content[FIGURE] = svg(draw(outcome.comparisons))
    for name, text in content.items():
        atomic.write(outcome.ablation.output / name, text)


def kinds_of(outcome: Outcome) -> dict[str, tuple[int, int]]:
    """Return the questions, of all and by kind, and the right answers of the best constants."""
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


def _markdown(outcome: Outcome) -> str:
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
        lines += ["", f"## {_escaped(heading(comparison, kinds))}", ""]
        lines += ["| variant | seeds | mean | difference | verdict |"]
        lines += ["| --- | ---: | ---: | ---: | --- |"]
        for variant, *cells in cells_of(comparison):
            lines.append(f"| `{variant}` | {' | '.join(cells)} |")
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


def cells_of(comparison: Comparison) -> list[list[str]]:
    """Return variant, number of seeds, mean, difference and verdict of each line."""
    digits = 4 if comparison.lower_is_better else 1

    def cell(value: Interval | None, sign: str = "") -> str:
        numbers = () if value is None else (value.mean, value.low, value.high)
        shown = [f"{comparison.scale * n:{sign}.{digits}f}" for n in numbers if n is not None]
        return f"{shown[0]} ({shown[1]} to {shown[2]})" if len(shown) == 3 else "".join(shown)

    return [
        [
            line.variant,
            f"{len(line.values)}",
            cell(line.mean),
            cell(line.difference, "+"),
            line.verdict,
        ]
        for line in comparison.lines
    ]


def _versions(ablation: Ablation) -> dict[str, list[str]]:
    """Return the versions of each package that the started runs were made with."""
    versions: dict[str, set[str]] = {}
    for run in ablation.runs:
        if run.begun:
            for package, version in versions_of(run.folder).items():
                versions.setdefault(package, set()).add(version)
    return {package: sorted(several) for package, several in versions.items()}


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
            for seed, value in sorted(line.values.items()):
                writer.writerow([comparison.metric, line.variant, seed, value])
    return text.getvalue()


_ACROSS, _TITLE = 3, 36
"""Panels side by side, and letters of a panel's title, at most."""
_PANEL, _ROW, _FRAME, _LEGEND, _LETTER = 3.9, 0.36, 1.2, 0.6, 0.1
"""Inches: width of a panel, a row, a panel's title and axis, the legend, a letter."""
_COLOURS = {"better": TEAL, "worse": "#b5523b"}
_EXPLANATION = (
    "dots: mean of the seeds with its 95 % interval; small: single seeds\n"
    "blue: better; red: worse; grey: within noise, or too few seeds to say"
)


def draw(comparisons: Sequence[Comparison]) -> "Figure":
    """Draw a panel for each of `comparisons`: the mean difference of every variant from the
    baseline, its interval if there are seeds enough to judge it, and the single seeds.
    """
    lines = [line for comparison in comparisons for line in comparison.lines]
    names = list(dict.fromkeys(line.variant for line in lines if line.difference is not None))
    across = min(len(comparisons), _ACROSS)
    down = -(-len(comparisons) // across)
    width = _LETTER * max((len(name) for name in names), default=12) + across * _PANEL
    height = down * (_ROW * max(len(names), 1) + _FRAME) + _LEGEND
    figure = new_figure(max(width, 6.2), height)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flat
    for comparison in comparisons:
        _panel(next(panels), comparison, names)
    for unused in panels:
        unused.remove()
    figure.supxlabel(_EXPLANATION, x=0.01, ha="left", fontsize=9, color=MUTED)
    return figure


def _panel(axes: "Axes", comparison: Comparison, names: Sequence[str]) -> None:
    plain_axes(axes, grid="x")
    scale = comparison.scale
    base = next((line.values for line in comparison.lines if line.verdict == BASELINE), {})
    axes.axvline(0, color=INK, linewidth=1.5, zorder=1)
    for line in comparison.lines:
        difference = line.difference
        if difference is None:
            continue
        row, colour = names.index(line.variant), _COLOURS.get(line.verdict, MUTED)
        seeds = [scale * (v - base[seed]) for seed, v in line.values.items() if seed in base]
        axes.plot(
            seeds, [row + 0.3] * len(seeds), "o",
            color=RULE, markersize=4.4, markeredgecolor="#8f8a7e",
        )  # fmt: skip
        if difference.count >= LEAST_SEEDS:  # that of two would hide everything else
            ends = [scale * end for end in (difference.low, difference.high) if end is not None]
            axes.plot(ends, [row] * len(ends), color=colour, linewidth=2)
        axes.plot(
            scale * difference.mean, row, "o", color=colour, markersize=10, markeredgecolor=PAPER
        )
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=12)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=6)
    title = comparison.metric
    if len(title) > _TITLE:
        title = f"{title[: _TITLE - 1]}…"
    axes.set_title(title, loc="left", fontsize=10, weight="bold", color=INK, parse_math=False)
    unit = "nats a token; left" if comparison.lower_is_better else "percentage points; right"
    axes.set_xlabel(f"difference in {unit} is better", loc="left", fontsize=9, color=MUTED)
