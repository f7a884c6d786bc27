"""The drift between two datasets as one HTML file and as a figure."""

from typing import Any

from aligncurate.reporting.drift import Drift, SizeShift
from aligncurate.reporting.drift_words import drift_sentences, name_text, shift_word
from aligncurate.reporting.overlay import lay_out_overlay
from aligncurate.reporting.template import render
from alignshared.palette import level_colours


def render_drift(drift: Drift) -> str:
    """The HTML of the page."""
    base, other = drift.base, drift.other
    edges = base.dataset.manifest.level_edges
    most = max((max(s.base, s.other) for s in drift.shares), default=1) or 1
    return render(
        "drift.html.j2",
        {
            "drift": drift,
            "sides": [base, other],
            "names": [name_text(base.name), name_text(other.name)],
            "sentences": drift_sentences(drift),
            "word": shift_word(drift.psi),
            "chart": lay_out_overlay(base.summary.histogram, other.summary.histogram, edges),
            "edges": edges,
            "colours": level_colours(edges.levels if edges else 1),
            "shares": [
                (s, round(100 * s.base / most, 2), round(100 * s.other / most, 2))
                for s in reversed(drift.shares)
            ],
            "sizes": [_size_row(shift) for shift in drift.sizes],
            "digests": [side.dataset.digest for side in (base, other)],
        },
    )


def _size_row(shift: SizeShift) -> dict[str, Any]:
    """One row of the table of sizes, each number as text; a dash where a side has none."""
    sides = (shift.base, shift.other)
    return {
        "title": shift.title,
        "medians": [_number(side.median) for side in sides],
        "means": [_number(side.moment.mean) for side in sides],
        "ranges": [
            f"{_number(side.moment.min)} to {_number(side.moment.max)}"
            if side.moment.count
            else "\N{EN DASH}"
            for side in sides
        ],
        "distance": "\N{EN DASH}" if shift.distance is None else f"{shift.distance:.3f}",
    }


def _number(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
