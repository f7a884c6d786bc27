"""The figure of an ablation: differences of every variant from the baseline."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aligntrain.ablation.compare import LEAST_SEEDS, Comparison, Line
from aligntrain.charts import INK, MUTED, PAPER, RULE, TEAL, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    scale = 1 if comparison.lower_is_better else 100
    base = next((line.values for line in comparison.lines if line.verdict == "baseline"), {})
    axes.axvline(0, color=INK, linewidth=1.5, zorder=1)
    for line in comparison.lines:
        if line.difference is None:
            continue
        row, colour = names.index(line.variant), _COLOURS.get(line.verdict, MUTED)
        seeds = [scale * (v - base[seed]) for seed, v in line.values.items() if seed in base]
        axes.plot(
            seeds, [row + 0.3] * len(seeds), "o",
            color=RULE, markersize=4.4, markeredgecolor="#8f8a7e",
        )  # fmt: skip
        if ends := [scale * end for end in _judged_interval(line)]:
            axes.plot(ends, [row] * len(ends), color=colour, linewidth=2)
        mean = scale * line.difference.mean
        axes.plot(mean, row, "o", color=colour, markersize=10, markeredgecolor=PAPER)
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


def _judged_interval(line: Line) -> list[float]:
    """Return the ends of the interval if it is judged: that of two seeds would be so wide that
    nothing else could be seen.
    """
    difference = line.difference
    if difference is None or difference.count < LEAST_SEEDS:
        return []
    return [end for end in (difference.low, difference.high) if end is not None]
