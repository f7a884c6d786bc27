"""What an ablation came to, as Markdown for people, JSON and CSV for programs, SVG to look at."""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntrain.ablation.compare import LEAST_SEEDS, Comparison, Line, expected_by_chance
from aligntrain.ablation.figure import draw
from aligntrain.intervals import Interval

if TYPE_CHECKING:
    from aligntrain.ablation.perform import Outcome

REPORT = "ablation.md"
FIGURE = "ablation.svg"
_PACKAGES = ("aligntrain", "torch", "transformers", "deepspeed")


def write_outcome(folder: Path, outcome: "Outcome") -> None:
    """Write `ablation.md`, `.json`, `.csv` and `.svg` into `folder`, each whole."""
    content = {
        REPORT: markdown(outcome),
        "ablation.json": json.dumps(_plain(outcome), indent=1, ensure_ascii=False) + "\n",
        "ablation.csv": _csv(outcome.comparisons),
    }
    if outcome.comparisons:
        content[FIGURE] = draw(outcome.comparisons)
    for name, text in content.items():
        unfinished = folder / f".unfinished-{name}"
        unfinished.write_text(text, encoding="utf-8", newline="")
        os.replace(unfinished, folder / name)


def markdown(outcome: "Outcome") -> str:
    """The report: what was done, a table for each metric, and what failed."""
    design = outcome.ablation.design
    finished = sum(cell.finished for cell in outcome.ablation.cells)
    seeds = len(design.seeds)
    lines = [
        f"# Ablation {design.name}",
        "",
        f"Recipe `{design.recipe}`, {len(design.variants)} variants, {seeds} "
        f"seed{'s' if seeds > 1 else ''}; {finished} of {len(outcome.ablation.cells)} runs are "
        f"finished. Differences are from `{design.baseline}`, paired by seed. In brackets the 95 % "
        "interval of the mean by Student's t; a difference whose interval holds 0 is within noise, "
        f"and fewer than {LEAST_SEEDS} pairs are too few to say.",
    ]
    chance = expected_by_chance(outcome.comparisons)
    if chance:
        lines.append(
            f"Were there no differences at all, about {chance:.1f} of those judged here would yet "
            "be called better or worse."
        )
    if not outcome.questions:
        lines += ["", "No question was asked: nothing with a short answer is held out."]
    if outcome.comparisons:
        lines += ["", f"![Differences by variant]({FIGURE})"]
    for comparison in outcome.comparisons:
        lines += ["", f"## {_heading(comparison, outcome.questions)}", "", *_table(comparison)]
    if outcome.failed:
        lines += ["", "## Failed", ""]
        lines += [f"- `{name}`: {_escaped(reason)}" for name, reason in outcome.failed.items()]
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return "\n".join([*lines, "", f"{versions}."]) + "\n"


def _heading(comparison: Comparison, questions: dict[str, int]) -> str:
    kind = comparison.metric.partition(", ")[2]
    if comparison.lower_is_better or kind not in questions:
        return f"{comparison.metric.capitalize()} (nats a token, less is better)"
    return f"Right answers, {_escaped(kind)} ({questions[kind]} questions, percent)"


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


def _plain(outcome: "Outcome") -> dict[str, Any]:
    ablation = outcome.ablation
    return {
        "name": ablation.design.name,
        "recipe": ablation.design.recipe,
        "baseline": ablation.design.baseline,
        "seeds": list(ablation.design.seeds),
        "pretrain_data": ablation.pretrain_data,
        "finetune_data": ablation.finetune_data,
        "questions": outcome.questions,
        "runs": {
            cell.name: {"seconds": cell.seconds, "start": cell.start and cell.start.name}
            for cell in ablation.cells
        },
        "comparisons": [asdict(comparison) for comparison in outcome.comparisons],
        "failed": outcome.failed,
        "versions": {package: version(package) for package in _PACKAGES},
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
