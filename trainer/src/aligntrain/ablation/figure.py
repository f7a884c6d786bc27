"""The figure of an ablation: how far each variant lies from the baseline, and how surely."""

from collections.abc import Sequence
from html import escape

from aligntrain.ablation.compare import Comparison, Line
from aligntrain.charts import Axis

_PANEL, _GAP, _LABELS, _ROW, _TOP, _BOTTOM = 250, 30, 120, 26, 46, 44
"""In pixels: width of a panel, the space between, the names, a row, and what is above and below."""

_INK, _MUTED, _RULE = "#1f1e1b", "#67645c", "#d9d5ca"
_COLOURS = {"better": "#2f7f86", "worse": "#b5523b"}


def draw(comparisons: Sequence[Comparison]) -> str:
    """An SVG with a panel for each of `comparisons`: of every variant the mean difference from the
    baseline with its interval, and the single seeds as small dots.
    """
    lines = [line for comparison in comparisons for line in comparison.lines]
    names = list(dict.fromkeys(line.variant for line in lines if line.difference is not None))
    width = _LABELS + len(comparisons) * (_PANEL + _GAP)
    height = _TOP + _ROW * max(len(names), 1) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for row, name in enumerate(names):
        y = _TOP + _ROW * (row + 0.5) + 4
        parts.append(f'<text x="{_LABELS - 12}" y="{y}" text-anchor="end">{escape(name)}</text>')
    for number, comparison in enumerate(comparisons):
        left = _LABELS + number * (_PANEL + _GAP)
        parts += _panel(comparison, names, left, height)
    return "".join([*parts, "</svg>\n"])


def _panel(comparison: Comparison, names: Sequence[str], left: float, height: float) -> list[str]:
    scale = 1 if comparison.lower_is_better else 100
    base = next((line.values for line in comparison.lines if line.verdict == "baseline"), {})
    lines = {line.variant: line for line in comparison.lines if line.difference is not None}
    spread = [
        scale * value for line in lines.values() for value in (*_single(line, base), *_ends(line))
    ]
    axis = Axis.over([0.0, *spread], about=4)
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
    parts = [_dot(x(value), y, 2.2, _RULE, "#8f8a7e") for value in _single(line, base)]
    low, high = line.difference.low, line.difference.high
    if low is not None and high is not None:
        parts.append(_line(x(low), y, x(high), y, colour, 2))
    return [*parts, _dot(x(line.difference.mean), y, 5, colour, "#fff")]


def _single(line: Line, base: dict[int, float]) -> list[float]:
    return [value - base[seed] for seed, value in line.values.items() if seed in base]


def _ends(line: Line) -> list[float]:
    d = line.difference
    return [] if d is None else [end for end in (d.mean, d.low, d.high) if end is not None]


def _title(comparison: Comparison) -> tuple[str, str]:
    if comparison.lower_is_better:
        return comparison.metric, "difference in nats a token; left is better"
    return comparison.metric, "difference in percentage points; right is better"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def _dot(x: float, y: float, radius: float, fill: str, edge: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{edge}"/>'
