"""Report as one HTML file without scripts or external resources; text of the data is escaped."""

import unicodedata
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from math import isfinite, log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignshared.images import data_uri, thumbnail
from alignshared.palette import level_colours
from aligntrain.charts import INK, dots, scatter, svg
from aligntrain.evaluate.intervals import Correlation, Interval
from aligntrain.gate.summary import (
    Measurements,
    Setting,
    by_kind,
    correlations,
    entropies,
    favourite,
    highest,
    mean_levels,
    settings_by_kind,
)

TEXT_LIMIT = 110
DASH = "\N{EN DASH}"


def number(value: float | None, digits: int = 3) -> str:
    """Return `value` to `digits` places with a true minus sign, a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float, digits: int = 1) -> str:
    """Return the fraction as a percentage."""
    return f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def interval(value: Interval | Correlation, digits: int = 3) -> str:
    """Return the ends of an interval, or a note that there is none."""
    if value.low is None or value.high is None:
        return "too few for an interval"
    return f"{number(value.low, digits)} to {number(value.high, digits)}"


def clip(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return `text` on one line, without control characters and of limited length."""
    clean = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text[: 4 * limit])
    head = " ".join(clean.split())
    if len(head) <= limit and len(text) <= 4 * limit:
        return head
    return f"{head[:limit].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def relation(r: Correlation) -> str:
    """Describe a correlation coefficient in a few words."""
    if r.r is None:
        return "one of the two does not vary, so there is nothing to correlate"
    if r.low is None or r.high is None:
        return "too few to say"
    if r.low <= 0 <= r.high:
        return "the interval holds 0: no relation is shown"
    strength = next(word for least, word in _STRENGTHS if abs(r.r) >= least)
    return f"a {strength} {'positive' if r.r > 0 else 'negative'} relation"


_STRENGTHS = ((0.5, "strong"), (0.3, "moderate"), (0.1, "weak"), (0.0, "very weak"))
"""Cohen's words for a coefficient (Statistical Power Analysis, 1988)."""


EXAMPLES = 7
"""Maximum images shown of each level."""

_POINTS = 4000
"""Maximum points of a scatter plot; the coefficients use all."""


def render_page(measured: Measurements, summary: dict[str, Any]) -> str:
    """Return the HTML of the report on `measured`; `summary` is its `summary_of`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "interval": interval,
        "relation": relation,
        "clip": clip,
        "thousands": lambda count: f"{count:,}",
    }
    return environment.get_template("page.html.j2").render(_context(measured, summary))


def _context(measured: Measurements, summary: dict[str, Any]) -> dict[str, Any]:
    weights, questions = measured.weights, measured.questions
    swept = settings_by_kind(questions, measured.swept) if measured.swept else {}
    overall = next(iter(swept.values()), [])
    colours = level_colours(summary["levels"])
    return {
        "name": measured.checkpoint.absolute().name,
        "measured": measured,
        "summary": summary,
        "colours": colours,
        "types": by_kind(questions, weights) if weights is not None else [],
        "favourite": None if weights is None else favourite(weights),
        "plots": _plots(measured),
        "groups": _groups(measured),
        "swept": swept,
        "overall": overall,
        "loss_chart": _loss_chart(overall, colours),
        "accuracy_chart": _accuracy_chart(overall, colours),
        "vectors": summary["vectors"],
    }


def _plots(measured: Measurements) -> list[tuple[str, Correlation, Correlation, str]]:
    """For each of score and level: the coefficients, and the plot as SVG."""
    if measured.weights is None:
        return []
    means = mean_levels(measured.weights)
    plots: list[tuple[str, Correlation, Correlation, str]] = []
    for name, (r, rho) in correlations(measured.questions, measured.weights).items():
        given = [getattr(question, name) for question in measured.questions]
        known = [i for i, value in enumerate(given) if value is not None and isfinite(value)]
        step = -(-len(known) // _POINTS)
        drawn = known[::step]
        values = [float(given[i]) for i in drawn]
        if name == "level":  # whole numbers would hide each other
            values = (
                np.array(values) + np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
            ).tolist()
        plots.append((name, r, rho, svg(scatter(values, means[drawn].tolist()), inline=True)))
    return plots


def _groups(measured: Measurements) -> list[tuple[int, list[dict[str, Any]]]]:
    """Return the example cards with the highest weight of each level, the highest level first."""
    if measured.weights is None:
        return []
    chosen = highest(measured.questions, measured.weights, EXAMPLES)
    return [
        (level, [_card(measured, at, weight) for at, weight in places])
        for level, places in sorted(chosen.items(), reverse=True)
    ]


def _card(measured: Measurements, at: int, weight: float) -> dict[str, Any]:
    question = measured.questions[at]
    picture = thumbnail(measured.pictures[question.row])
    return {
        "uri": data_uri(picture) if picture else None,
        "weight": weight,
        "question": clip(question.question),
        "answer": None if question.answer is None else clip(question.answer, 60),
        "id": clip(question.id, 40),
    }


def _loss_chart(settings: list[Setting], colours: list[str]) -> str | None:
    values = [
        (f"{s.level}", colours[s.level - 1], s.difference)
        for s in settings
        if s.level is not None and s.difference is not None
    ]
    return svg(dots(values, zero=True), inline=True) if values else None


def _accuracy_chart(settings: list[Setting], colours: list[str]) -> str | None:
    values = [
        ("own mix", INK, s.accuracy)
        if s.level is None
        else (f"{s.level}", colours[s.level - 1], s.accuracy)
        for s in settings
        if s.accuracy is not None
    ]
    return svg(dots(values), inline=True) if values else None


def summary_of(measured: Measurements) -> dict[str, Any]:
    """Return all numbers of the report as plain JSON values."""
    config, read = measured.model.config, measured.read
    summary: dict[str, Any] = {
        "model": str(measured.checkpoint.absolute()),
        "mixing": config.mixing,
        "levels": config.levels,
        "gate_text": config.gate_text,
        "without": measured.without,
        "data": measured.dataset.location,
        "data_sha256": measured.dataset.digest,
        "rows": read.rows,
        "questions": len(measured.questions),
        "pairs": read.pairs,
        "types_from": read.types_from,
        "left_out": {
            "without a picture": read.text_only,
            "without a question": read.unusable,
            "picture unread": len(read.questions) - len(measured.questions),
        },
        "vectors": vectors_of(measured.model),
        "package": f"aligntrain {version('aligntrain')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if measured.weights is not None:
        summary["entropy_of_no_preference"] = log(config.levels - 1)
        summary["types"] = [asdict(kind) for kind in by_kind(measured.questions, measured.weights)]
        summary["correlations"] = {
            name: {"pearson": asdict(r), "spearman": asdict(rho)}
            for name, (r, rho) in correlations(measured.questions, measured.weights).items()
        }
    if measured.swept:
        summary["sweep"] = {
            kind: [asdict(setting) for setting in settings]
            for kind, settings in settings_by_kind(measured.questions, measured.swept).items()
        }
    return summary


def vectors_of(model: Any) -> dict[str, Any]:
    """Return the lengths of the N level vectors and their pairwise cosines [N][N]."""
    table = model.model.alignment.table.detach().double().cpu().numpy()
    lengths = np.linalg.norm(table, axis=1)
    unit = table / np.maximum(lengths, 1e-12)[:, None]
    return {"length": lengths.tolist(), "cosine": (unit @ unit.T).tolist()}


def samples_table(measured: Measurements) -> pa.Table:
    """Return a row per question: its data, its weights and its results in the sweep."""
    questions = measured.questions
    columns: dict[str, Any] = {
        "id": pa.array([question.id for question in questions], pa.string()),
        "turn": pa.array([question.turn for question in questions], pa.int32()),
        "type": pa.array([question.kind for question in questions], pa.string()),
        "question": pa.array([question.question for question in questions], pa.string()),
        "reference": pa.array([question.answer for question in questions], pa.string()),
        "score": pa.array([question.score for question in questions], pa.float32()),
        "level": pa.array([question.level for question in questions], pa.int8()),
    }
    if measured.weights is not None:
        weights = measured.weights
        columns["gate_weights"] = pa.array(weights.tolist(), pa.list_(pa.float32()))
        columns["mean_level"] = pa.array(mean_levels(weights), pa.float32())
        columns["gate_entropy"] = pa.array(entropies(weights), pa.float32())
    if measured.swept:
        swept = {one.number: one for one in measured.swept}
        for setting in measured.swept[0].losses:
            name = "own" if setting is None else f"level_{setting}"
            ordered = [swept.get(number) for number in range(len(questions))]
            columns[f"loss_{name}"] = pa.array(
                [one and one.losses[setting] for one in ordered], pa.float32()
            )
            columns[f"said_{name}"] = pa.array(
                [one and one.said.get(setting) for one in ordered], pa.string()
            )
            columns[f"right_{name}"] = pa.array(
                [one and one.right.get(setting) for one in ordered], pa.bool_()
            )
    return pa.table(columns)
