"""Report as one HTML file without scripts or external resources; text of the data is escaped."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignshared.images import data_uri, thumbnail
from alignshared.palette import INK, level_colours
from aligntrain.charts import dots, matrix, scatter, svg
from aligntrain.evaluate.intervals import Correlation, Interval
from aligntrain.gate.summary import GateReport, Setting, favourite, highest, mean_levels, values_of

TEXT_LIMIT = 110
DASH = "\N{EN DASH}"

_STRENGTHS = ((0.5, "strong"), (0.3, "moderate"), (0.1, "weak"), (0.0, "very weak"))
"""Cohen's words for a coefficient (Statistical Power Analysis, 1988)."""
_EXAMPLES = 7
"""Maximum images shown of each level."""
_POINTS = 4000
"""Maximum points of a scatter plot; the coefficients use all."""


def render_page(report: GateReport, summary: dict[str, Any]) -> str:
    """Return the HTML of the report on `report`; `summary` is its `summary_of`."""
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
        "thousands": "{:,}".format,
    }
    colours = level_colours(summary["levels"])
    return environment.get_template("page.html.j2").render(
        name=report.checkpoint.absolute().name,
        summary=summary,
        colours=colours,
        types=report.kinds,
        favourite=None if report.weights is None else favourite(report.weights),
        plots=_plots(report),
        groups=_groups(report),
        swept=report.settings,
        overall=report.overall,
        loss_chart=_chart(report.overall, "difference", colours),
        accuracy_chart=_chart(report.overall, "accuracy", colours),
        matrix=_matrix(report),
    )


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
        return "the interval contains 0: no relation is shown"
    strength = next(word for least, word in _STRENGTHS if abs(r.r) >= least)
    return f"a {strength} {'positive' if r.r > 0 else 'negative'} relation"


def _plots(report: GateReport) -> list[tuple[str, Correlation, Correlation, str]]:
    """For each of score and level: the coefficients, and the plot as SVG."""
    plots: list[tuple[str, Correlation, Correlation, str]] = []
    for name, (r, rho) in report.correlations.items():
        assert report.weights is not None  # there are coefficients
        values = values_of(report.questions, name)
        known = np.flatnonzero(np.isfinite(values))
        drawn = known[:: -(-len(known) // _POINTS)]
        x, y = values[drawn], mean_levels(report.weights)[drawn]
        if name == "level":  # whole numbers would hide each other
            x += np.random.default_rng(0).uniform(-0.3, 0.3, len(x))
        plots.append((name, r, rho, svg(scatter(x.tolist(), y.tolist()), inline=True)))
    return plots


def _groups(report: GateReport) -> list[tuple[int, list[dict[str, Any]]]]:
    """Return the example cards with the highest weight of each level, the highest level first."""
    if report.weights is None:
        return []
    chosen = highest(report.questions, report.weights, _EXAMPLES)
    return [
        (level, [_card(report, at, weight) for at, weight in places])
        for level, places in sorted(chosen.items(), reverse=True)
    ]


def _card(report: GateReport, at: int, weight: float) -> dict[str, Any]:
    question = report.questions[at]
    image = thumbnail(report.shards.row(question.row).image or b"")
    return {
        "uri": data_uri(image) if image else None,
        "weight": weight,
        "question": clip(question.question),
        "answer": None if question.answer is None else clip(question.answer, 60),
        "id": clip(question.id, 40),
    }


def _chart(settings: list[Setting], what: str, colours: list[str]) -> str | None:
    """Return a chart of each setting's `difference` or `accuracy`, None if none has any."""
    values = [
        (str(s.level), colours[s.level - 1], value)
        if isinstance(s.level, int)
        else (s.level or "own mix", INK, value)
        for s in settings
        if (value := getattr(s, what)) is not None
    ]
    return svg(dots(values, zero=what == "difference"), inline=True) if values else None


def _matrix(report: GateReport) -> str | None:
    """Return the losses by own level, the highest on top, and forced level; None without levels."""
    if not report.matrix:
        return None
    rows = [f"level {row.level}" for row in report.matrix]
    return svg(matrix(np.array([row.losses for row in report.matrix]), rows), inline=True)
