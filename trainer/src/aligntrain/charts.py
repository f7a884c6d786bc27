"""Figures of the reports, drawn by matplotlib and written as SVG."""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignshared.palette import INK, MUTED, PAPER, RULE, for_page, without_fonts
from aligntrain.evaluate.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEAL = "#2f7f86"


def dots(values: Sequence[tuple[str, str, Interval]], *, zero: bool = False) -> "Figure":
    """Means with whiskers, each with its label and colour; `zero` draws a line at 0."""
    figure = new_figure(5, 2.9)
    axes = plain_axes(figure.add_subplot())
    for place, (_, colour, value) in enumerate(values):
        if value.low is not None and value.high is not None:
            axes.plot([place, place], [value.low, value.high], color=colour, linewidth=2)
        axes.plot(place, value.mean, "o", color=colour, markersize=9, markeredgecolor=PAPER)
    if zero:
        axes.axhline(0, color=INK, linewidth=1.5, zorder=1)
    axes.set_xticks(range(len(values)), [label for label, _, _ in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    return figure


def scatter(x: Sequence[float], y: Sequence[float]) -> "Figure":
    """One dot for each pair of `x` and `y`."""
    figure = new_figure(10, 3.2)
    axes = plain_axes(figure.add_subplot())
    axes.plot(x, y, "o", color=TEAL, alpha=0.4, markersize=4, markeredgewidth=0)
    return figure


def matrix(values: npt.NDArray[np.float64], rows: Sequence[str]) -> "Figure":
    """A cell for each of `values` [n, N], see `draw_matrix`."""
    figure = new_figure(10, 0.8 + 0.36 * len(rows))
    draw_matrix(figure.add_subplot(), values, rows)
    return figure


def draw_matrix(axes: "Axes", values: npt.NDArray[np.float64], rows: Sequence[str]) -> None:
    """Draw a cell for each of `values` [n, N], columns from 1.

    The darker a cell, the less it is in its row; the least is bold.
    """
    from matplotlib.colors import LinearSegmentedColormap

    plain_axes(axes).grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    above = values - values.min(axis=1, keepdims=True)
    shades = above / np.maximum(above.max(axis=1, keepdims=True), 1e-12)
    tints = LinearSegmentedColormap.from_list("tints", [f"{TEAL}b0", f"{TEAL}00"])
    n, levels = values.shape
    sides = np.arange(levels + 1) + 0.5, np.arange(n + 1) - 0.5
    axes.pcolormesh(*sides, shades, cmap=tints, vmin=0, vmax=1)
    for (y, x), value in np.ndenumerate(values):
        axes.text(
            x + 1, y, f"{value:.2f}", color=INK, fontsize=9, ha="center", va="center",
            fontweight="normal" if above[y, x] else "bold",
        )  # fmt: skip
    axes.set_xticks(range(1, levels + 1))
    axes.set_yticks(range(n), rows)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches; pyplot's global state is not touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: "Axes", grid: str = "y") -> "Axes":
    """Style `axes` with one line below and a grid across the values."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9, length=0, pad=6)
    axes.grid(axis="x" if grid == "x" else "y", color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.ticklabel_format(axis="x" if grid == "x" else "y", useOffset=False, style="plain")
    return axes


def svg(figure: "Figure", *, inline: bool = False) -> str:
    """Return `figure` as an SVG document, the same text for the same data.

    An `inline` one is an element of a page and takes the page's colours of ink, paper and rules.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure.patch.set_visible(not inline)
    target = io.StringIO()
    with (
        rc_context({"svg.hashsalt": "aligntrain", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        # The viewer has fonts for scripts that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})
    if inline:
        return for_page(target.getvalue())
    text = without_fonts(target.getvalue())
    return text.replace("<svg", '<svg font-family="system-ui, sans-serif"', 1)
