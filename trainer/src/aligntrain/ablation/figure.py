"""The figure of an ablation: how far each variant lies from the baseline, and how surely."""

from collections.abc import Sequence
from html import escape

from aligntrain.ablation.compare import LEAST_SEEDS, Comparison, Line
from aligntrain.charts import Axis

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
