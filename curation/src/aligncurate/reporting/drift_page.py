"""The drift between two datasets as one HTML file and as a figure."""

from typing import Any

from aligncurate.core.drift import PSI_LARGE, PSI_SMALL
from aligncurate.core.sizes import SizeCounts
from aligncurate.reporting.drift import Drift, SizeShift
from aligncurate.reporting.format import clip_middle, printable, score_text, share_text
from aligncurate.reporting.overlay import lay_out_overlay
from aligncurate.reporting.template import render
from alignshared.palette import level_colours

_NOTABLE_DISTANCE = 0.1
"""Of lengths and sides: a smaller Kolmogorov-Smirnov distance is not spoken of."""

_NOTABLE_REJECTS = 0.001
_SAME_MEAN = 0.05
"""In standard deviations."""


def shift_word(psi: float) -> str:
    """`small`, `moderate` or `large`, by the usual limits of the PSI."""
    return "small" if psi < PSI_SMALL else "moderate" if psi < PSI_LARGE else "large"


def drift_sentences(drift: Drift) -> list[str]:
    """What moved from the base to the other dataset, the most important first."""
    sentences = [_scores(drift), _shares(drift), *_captions(drift), *_pictures(drift)]
    if len(sentences) == 2:
        sentences.append("Captions and pictures are of much the same sizes.")
    sentences += _rejects(drift)
    if drift.incomparable:
        sentences.insert(
            0,
            f"The scores of the two are not of one kind: {'; '.join(drift.incomparable)}. What "
            "follows tells that difference as much as one of the data.",
        )
    return sentences


def _scores(drift: Drift) -> str:
    a, b = drift.base.summary.histogram, drift.other.summary.histogram
    means = f"{score_text(b.mean)} against {score_text(a.mean)}"
    step = (b.mean - a.mean) / a.deviation if a.deviation else b.mean - a.mean
    base, other = name_text(drift.base.name), name_text(drift.other.name)
    if abs(step) < _SAME_MEAN:
        return f"The mean score of {other} is nearly that of {base}: {means}."
    by = f", by {abs(step):.2f} of the latter’s standard deviations" if a.deviation else ""
    way = "higher" if step > 0 else "lower"
    return f"The mean score of {other} is {way} than that of {base}{by}: {means}."


def _shares(drift: Drift) -> str:
    over = f"{len(drift.shares)} levels" if drift.on_levels else "tenths of its scores"
    sentence = (
        f"Over {name_text(drift.base.name)}’s {over} the shift is {shift_word(drift.psi)} "
        f"(PSI {drift.psi:.3f})"
    )
    most = max(drift.shares, key=lambda share: abs(share.change))
    if not most.change:
        return f"{sentence}: all of them have the same shares."
    what = f"level {most.title}" if drift.on_levels else f"that from {most.title} on"
    return (
        f"{sentence}; {what} changed most, from {share_text(most.base)} to "
        f"{share_text(most.other)} of the pairs."
    )


def _captions(drift: Drift) -> list[str]:
    shift = drift.sizes[0]
    if not _notable(shift):
        return []
    a, b = shift.base.median, shift.other.median
    if a == b:
        return [f"Captions vary otherwise in length, about the same median of {a} characters."]
    way = "longer" if (b or 0) > (a or 0) else "shorter"
    return [f"Captions are {way}: half of them have up to {b} characters instead of {a}."]


def _pictures(drift: Drift) -> list[str]:
    width, height = drift.sizes[1:]
    if not _notable(width) and not _notable(height):
        return []
    before = _sides(width.base, height.base)
    after = _sides(width.other, height.other)
    if before == after:
        return [f"Pictures vary otherwise in size, about the same medians of {before} pixels."]
    return [f"Pictures have another size: their medians are {after} pixels instead of {before}."]


def _sides(width: SizeCounts, height: SizeCounts) -> str:
    return f"{width.median:,} × {height.median:,}"


def _notable(shift: SizeShift) -> bool:
    return shift.distance is not None and shift.distance >= _NOTABLE_DISTANCE


def _rejects(drift: Drift) -> list[str]:
    base, other = (sum(side.rejects.values()) / side.rows_in for side in (drift.base, drift.other))
    if abs(other - base) < _NOTABLE_REJECTS:
        return []
    reason = drift.rejects[0].title
    return [
        f"Of all pairs that came in {share_text(other)} were rejected instead of "
        f"{share_text(base)}; {reason} changed most."
    ]


def name_text(name: str) -> str:
    """A dataset's name as it stands in a sentence."""
    return clip_middle(printable(name), 80)


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
