"""The report as one HTML file: no script, nothing fetched, every text of the data escaped."""

from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignshared.palette import level_colours
from alignshared.thumbnails import data_uri, thumbnail
from aligntrain.charts import Dots, Scatter, dots, scatter
from aligntrain.evaluate.intervals import Correlation
from aligntrain.gate import words
from aligntrain.gate.findings import Findings
from aligntrain.gate.summary import (
    Setting,
    by_kind,
    correlations,
    favourite,
    highest,
    mean_levels,
    settings_by_kind,
)

EXAMPLES = 7
"""Pictures that are shown of each level, at most."""

_POINTS = 4000
"""Points of a scatter plot, at most; the coefficients are of all."""


def render_page(found: Findings, summary: dict[str, Any]) -> str:
    """The HTML of the report on `found`; `summary` is `summary_of` it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "percent": words.percent,
        "interval": words.interval,
        "relation": words.relation,
        "clip": words.clip,
        "thousands": lambda count: f"{count:,}",
    }
    return environment.get_template("page.html.j2").render(_context(found, summary))


def _context(found: Findings, summary: dict[str, Any]) -> dict[str, Any]:
    weights, cases = found.weights, found.cases
    swept = settings_by_kind(cases, found.swept) if found.swept else {}
    overall = next(iter(swept.values()), [])
    return {
        "name": found.checkpoint.absolute().name,
        "found": found,
        "summary": summary,
        "colours": level_colours(summary["levels"]),
        "types": by_kind(cases, weights) if weights is not None else [],
        "favourite": None if weights is None else favourite(weights),
        "plots": _plots(found),
        "groups": _groups(found),
        "swept": swept,
        "overall": overall,
        "loss_chart": _loss_chart(overall),
        "accuracy_chart": _accuracy_chart(overall),
        "vectors": summary["vectors"],
    }


def _plots(found: Findings) -> list[tuple[str, Correlation, Correlation, Scatter]]:
    """For each of score and level: the coefficients, and the points drawn."""
    if found.weights is None:
        return []
    means = mean_levels(found.weights)
    plots: list[tuple[str, Correlation, Correlation, Scatter]] = []
    for name, (r, rho) in correlations(found.cases, found.weights).items():
        given = [getattr(case, name) for case in found.cases]
        known = [i for i, value in enumerate(given) if value is not None and isfinite(value)]
        step = -(-len(known) // _POINTS)
        drawn = known[::step]
        values = [float(given[i]) for i in drawn]
        if name == "level":  # whole numbers would hide each other
            values = (
                np.array(values) + np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
            ).tolist()
        plots.append((name, r, rho, scatter(values, means[drawn].tolist())))
    return plots


def _groups(found: Findings) -> list[tuple[int, list[dict[str, Any]]]]:
    """Cards of the examples with the highest weight for each level, the highest level first."""
    if found.weights is None:
        return []
    chosen = highest(found.cases, found.weights, EXAMPLES)
    return [
        (level, [_card(found, at, weight) for at, weight in places])
        for level, places in sorted(chosen.items(), reverse=True)
    ]


def _card(found: Findings, at: int, weight: float) -> dict[str, Any]:
    case = found.cases[at]
    picture = thumbnail(found.pictures[case.row])
    return {
        "uri": data_uri(picture) if picture else None,
        "weight": weight,
        "question": words.clip(case.question),
        "answer": None if case.answer is None else words.clip(case.answer, 60),
        "id": words.clip(case.id, 40),
    }


def _loss_chart(settings: list[Setting]) -> Dots | None:
    values = [(f"{s.level}", s.level, s.difference) for s in settings if s.difference is not None]
    return dots(values, zero=True) if values else None


def _accuracy_chart(settings: list[Setting]) -> Dots | None:
    values = [
        ("own mix" if s.level is None else f"{s.level}", s.level, s.accuracy)
        for s in settings
        if s.accuracy is not None
    ]
    return dots(values) if values else None
