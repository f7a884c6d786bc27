"""Figures of a report, as PNG and as inline SVG.

The gallery corresponds to the paper's figure 2, the histogram to its figure 3.
"""

import io
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageOps

from aligncurate.core.histogram import Histogram
from aligncurate.reporting.examples import Example, Group
from aligncurate.reporting.format import clip_middle, printable, score_text, share_text
from alignshared import LevelEdges, LevelStatistics
from alignshared.images import thumbnail
from alignshared.palette import INK, MUTED, PAPER, RULE, for_page, level_colours
from alignshared.schema import SCORE_COLUMN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = (7.2, 3.4), (3.3, 2.6)
"""Plot sizes in inches: for PNG files and desktop pages; for phones."""

_DPI = 200
_BASE, _OTHER = "#b9b3a5", "#b5523b"

_SCRIPTS = ("Noto Sans", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Emoji")
"""Fonts for captions in other scripts, if installed."""

_SIDE, _GAP, _TEXT, _LABEL = 1.2, 0.14, 0.72, 0.35
"""Gallery layout in inches: image, gap, text below, row label."""

_IMAGE_PIXELS = int(_SIDE * _DPI)


def draw_histogram(
    histogram: Histogram, edges: LevelEdges | None, size: tuple[float, float] = WIDE
) -> "Figure":
    """Histogram of scores in the colours of the levels; a triangle marks the mean.

    A bin crossed by an edge has the same height, that of its whole count, on both sides.
    """
    figure = _figure(*size)
    by = edges.by if edges else SCORE_COLUMN
    axes = _plot(figure, by)
    bins = histogram.bins()
    left, right = float(bins.ends[0]), float(bins.ends[-1])
    cuts = np.clip(edges.edges if edges else [], left, right)
    ends = np.union1d(bins.ends, cuts)
    middles = (ends[1:] + ends[:-1]) / 2
    heights = bins.counts[np.searchsorted(bins.ends, middles) - 1]
    levels = np.searchsorted(cuts, middles, side="right") + 1
    colours = level_colours(len(cuts) + 1)
    for level in np.unique(levels).tolist():
        (steps,) = np.nonzero(levels == level)
        bounds = ends[steps[0] : steps[-1] + 2]
        axes.stairs(heights[steps], bounds, fill=True, color=colours[level - 1], linewidth=0)
        if edges and bounds[-1] - bounds[0] > 0.14 / size[0] * (right - left):
            axes.annotate(
                str(level), ((bounds[0] + bounds[-1]) / 2, 1.02),
                xycoords=("data", "axes fraction"), ha="center", fontsize=7, color=MUTED,
            )  # fmt: skip
    for edge in cuts.tolist():
        axes.axvline(edge, color=PAPER, linewidth=1.4)
    _draw_edges(axes, edges)
    axes.annotate(
        "\N{BLACK UP-POINTING TRIANGLE}", (histogram.mean, 0), (0, -1),
        xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="center", va="top", fontsize=5, color=INK,
    )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(0, float(bins.counts.max()) * 1.06)
    axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.locator_params(axis="y", integer=True)
    axes.set_ylabel(f"pairs per {bins.width:g} of {clip_middle(by, 24)}", parse_math=False)
    return figure


def draw_overlay(
    base: Histogram,
    other: Histogram,
    names: tuple[str, str],
    edges: LevelEdges | None,
    size: tuple[float, float] = WIDE,
) -> "Figure":
    """Overlaid histograms of two datasets, as shares of their pairs, with the base's edges."""
    figure = _figure(*size)
    by = edges.by if edges else SCORE_COLUMN
    axes = _plot(figure, by)
    bins, other_bins = base.bins(beside=other), other.bins(beside=base)
    shares, other_shares = bins.counts / base.count, other_bins.counts / other.count
    axes.stairs(shares, bins.ends, fill=True, color=_BASE, label=names[0])
    axes.stairs(other_shares, bins.ends, color=_OTHER, linewidth=1.4, label=names[1])
    _draw_edges(axes, edges)
    axes.set_xlim(bins.ends[0], bins.ends[-1])
    axes.set_ylim(0, float(max(shares.max(), other_shares.max())) * 1.06)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.set_ylabel(f"share of pairs per {bins.width:g} of {clip_middle(by, 24)}", parse_math=False)
    legend = axes.legend(
        frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2,
        ncols=2 if size == WIDE and len("".join(names)) < 80 else 1, labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def draw_levels(statistics: list[LevelStatistics], by: str = SCORE_COLUMN) -> "Figure":
    """Score range, mean and pair count of each level, highest level on top."""
    figure = _figure(7.2, 0.9 + 0.28 * len(statistics))
    scores, counts = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    colours = level_colours(len(statistics))
    ends = [end for s in statistics for end in (s.min, s.max) if end is not None]
    spread = max(ends, default=0.0) - min(ends, default=0.0)
    least_width = 1e-4 if by == SCORE_COLUMN or not spread else spread / 1000
    for s in statistics:
        colour = colours[s.level - 1]
        counts.barh(s.level, s.count, height=0.5, color=colour)
        text = f"{s.count:,}  ({share_text(s.share)})"
        counts.annotate(
            text, (s.count, s.level), (4, 0), textcoords="offset points",
            va="center", fontsize=7, color=INK,
        )  # fmt: skip
        if s.min is not None and s.max is not None and s.mean is not None:
            width = max(s.max - s.min, least_width)
            scores.barh(s.level, width, left=s.min, height=0.5, color=colour)
            scores.plot(s.mean, s.level, "o", color="white", markeredgecolor=INK, markersize=4)
    named = clip_middle(by, 40)
    _bare(scores).set_xlabel(
        f"{named}, from least to greatest; the mean is marked", parse_math=False
    )
    _bare(counts).set_xlabel("pairs")
    scores.margins(x=0.03)
    scores.set_ylabel("level")
    scores.set_yticks([s.level for s in statistics])
    counts.tick_params(labelleft=False)
    counts.set_xlim(0, max(max(s.count for s in statistics), 1) * 1.55)
    counts.set_xticks([])
    return figure


def draw_gallery(groups: list[Group]) -> "Figure":
    """Example pairs with captions and scores, one row per level."""
    columns = max(len(group.examples) for group in groups)
    width = _LABEL + columns * (_SIDE + _GAP)
    height = len(groups) * (_SIDE + _TEXT) + _GAP
    figure = _figure(width, height, layout=None)
    levels = max(group.level or 1 for group in groups)
    colours = level_colours(levels)
    for row, group in enumerate(groups):
        # Fixed positions: a long caption must never move or shrink an image.
        top = 1 - (_GAP + row * (_SIDE + _TEXT)) / height
        colour = colours[group.level - 1] if group.level else INK
        figure.text(
            0.5 * _LABEL / width, top - _SIDE / 2 / height, group.title, rotation=90,
            ha="center", va="center", fontsize=8, fontweight="bold", color=colour,
        )  # fmt: skip
        for column, example in enumerate(group.examples):
            left = (_LABEL + column * (_SIDE + _GAP)) / width
            box = (left, top - _SIDE / height, _SIDE / width, _SIDE / height)
            _draw_pair(figure.add_axes(box), example)
    return figure


def _draw_pair(axes: "Axes", example: Example) -> None:
    axes.set_axis_off()
    image = thumbnail(example.image, _IMAGE_PIXELS) if example.image else None
    if image:
        square = ImageOps.pad(image, (_IMAGE_PIXELS, _IMAGE_PIXELS), color="white")
        axes.imshow(np.asarray(square), aspect="auto")
    else:
        axes.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=6, color=MUTED)
    caption = textwrap.wrap(printable(example.caption[:400]), 24, max_lines=4, placeholder=" …")
    for text, below, weight in (
        (score_text(example.score), 3, "bold"),
        ("\n".join(caption), 11, "normal"),
    ):
        axes.annotate(
            text, (0.5, 0), (0, -below), xycoords="axes fraction", textcoords="offset points",
            ha="center", va="top", fontsize=6, color=INK, weight=weight, parse_math=False,
            linespacing=1.05,
        )  # fmt: skip


def _figure(width: float, height: float, layout: Any = "constrained") -> "Figure":
    """A figure with its own canvas, independent of pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout=layout)


def _plot(figure: "Figure", by: str) -> "Axes":
    axes = _bare(figure.add_subplot())
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_xlabel(clip_middle(by, 60), parse_math=False)
    return axes


def _draw_edges(axes: "Axes", edges: LevelEdges | None) -> None:
    for edge in edges.edges if edges else ():
        axes.axvline(edge, color=MUTED, linewidth=0.5)


def _bare(axes: "Axes") -> "Axes":
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=7, bottom=False, left=False, pad=6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.xaxis.label.set(color=INK, fontsize=7.5)
    axes.yaxis.label.set(color=INK, fontsize=7.5)
    return axes


def png(figure: "Figure") -> bytes:
    """Return `figure` as deterministic PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

    installed = set(get_font_names())
    families = [*(name for name in _SCRIPTS if name in installed), "DejaVu Sans"]
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    target = io.BytesIO()
    with warnings.catch_warnings():
        # Captions without an installed font show boxes; no warnings on the terminal.
        warnings.filterwarnings(
            "ignore", message=r"Glyph \d+|Matplotlib currently does not support"
        )
        FigureCanvasAgg(figure).print_png(target, metadata={"Software": None})
    return target.getvalue()


def svg(figure: "Figure") -> str:
    """Return `figure` as a deterministic SVG element in the page's own fonts and colours."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure.patch.set_visible(False)
    target = io.StringIO()
    salt = f"{figure.get_figwidth()} x {figure.get_figheight()}"
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})
    return for_page(target.getvalue())
