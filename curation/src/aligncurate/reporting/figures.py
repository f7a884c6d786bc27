"""The figures of a report as PNG: the paper's figures 2 and 3, and the levels."""

import io
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageOps

from aligncurate.core.histogram import Histogram
from aligncurate.reporting.chart import level_areas
from aligncurate.reporting.format import printable, score_text, share_text
from aligncurate.reporting.gallery import Example, Group
from aligncurate.reporting.overlay import shares_in_bins
from alignshared import LevelEdges, LevelStatistics
from alignshared.palette import level_colours
from alignshared.thumbnails import thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 200
_INK, _MUTED, _RULE = "#1f1e1b", "#67645c", "#d9d5ca"

_SCRIPTS = ("Noto Sans", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Emoji")
"""Fonts that captions in other scripts fall back to, where they are installed."""

_SIDE, _GAP, _TEXT, _LABEL = 1.2, 0.14, 0.72, 0.35
"""Of the gallery, in inches: a picture, the space between, the text below, the row's label."""

_PICTURE_PIXELS = int(_SIDE * _DPI)


def histogram_png(histogram: Histogram, edges: LevelEdges | None) -> bytes:
    """The histogram of scores with the edges between levels drawn; the paper's figure 3."""
    figure = _figure(7.2, 3.6)
    axes = _bare(figure.add_subplot())
    bins = histogram.bins()
    colours = level_colours(edges.levels if edges else 1)
    span = float(bins.ends[-1] - bins.ends[0])
    for area in level_areas(bins, edges):
        axes.stairs(area.heights, area.ends, fill=True, color=colours[area.level - 1], linewidth=0)
        if edges and area.ends[-1] - area.ends[0] > 0.02 * span:
            middle = (area.ends[0] + area.ends[-1]) / 2
            axes.annotate(
                str(area.level), (middle, 1.02), xycoords=("data", "axes fraction"),
                ha="center", fontsize=8, color=_MUTED,
            )  # fmt: skip
    for edge in edges.edges if edges else ():
        axes.axvline(edge, color="white", linewidth=1.4)
        axes.axvline(edge, color=_MUTED, linewidth=0.5)
    axes.set_xlim(bins.ends[0], bins.ends[-1])
    axes.set_ylim(0, float(bins.counts.max()) * 1.06)
    axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.locator_params(axis="y", integer=True)
    axes.grid(axis="y", color=_RULE, linewidth=0.5)
    axes.set_xlabel("score")
    axes.set_ylabel(f"pairs per {bins.width:g} of score")
    return _png(figure)


def overlay_png(
    base: Histogram, other: Histogram, names: tuple[str, str], edges: LevelEdges | None
) -> bytes:
    """The histograms of two datasets over each other as shares of their pairs, with the base's
    edges.
    """
    figure = _figure(7.2, 3.8)
    axes = _bare(figure.add_subplot())
    shares = shares_in_bins(base, other)
    axes.stairs(shares.base, shares.ends, fill=True, color="#b9b3a5", label=names[0])
    axes.stairs(shares.other, shares.ends, color="#b5523b", linewidth=1.4, label=names[1])
    for edge in edges.edges if edges else ():
        axes.axvline(edge, color=_MUTED, linewidth=0.5)
    axes.set_xlim(shares.ends[0], shares.ends[-1])
    axes.set_ylim(0, shares.top)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.grid(axis="y", color=_RULE, linewidth=0.5)
    axes.set_xlabel("score")
    axes.set_ylabel(f"share of pairs per {shares.width:g} of score")
    legend = axes.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _png(figure)


def levels_png(statistics: list[LevelStatistics]) -> bytes:
    """Range and mean of the scores of each level, and how many pairs it holds; highest level on
    top.
    """
    figure = _figure(7.2, 0.9 + 0.28 * len(statistics))
    scores, counts = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    colours = level_colours(len(statistics))
    for s in statistics:
        colour = colours[s.level - 1]
        counts.barh(s.level, s.count, height=0.5, color=colour)
        text = f"{s.count:,}  ({share_text(s.share)})"
        counts.annotate(
            text, (s.count, s.level), (4, 0), textcoords="offset points",
            va="center", fontsize=7, color=_INK,
        )  # fmt: skip
        if s.min is not None and s.max is not None and s.mean is not None:
            scores.barh(s.level, max(s.max - s.min, 1e-4), left=s.min, height=0.5, color=colour)
            scores.plot(s.mean, s.level, "o", color="white", markeredgecolor=_INK, markersize=4)
    _bare(scores).set_xlabel("score, from least to greatest; the mean is marked")
    _bare(counts).set_xlabel("pairs")
    scores.margins(x=0.03)
    scores.set_ylabel("level")
    scores.set_yticks([s.level for s in statistics])
    counts.tick_params(labelleft=False)
    counts.set_xlim(0, max(max(s.count for s in statistics), 1) * 1.55)
    counts.set_xticks([])
    return _png(figure)


def gallery_png(groups: list[Group]) -> bytes:
    """Example pairs with captions and scores, one row per level; the paper's figure 2."""
    columns = max(len(group.examples) for group in groups)
    width = _LABEL + columns * (_SIDE + _GAP)
    height = len(groups) * (_SIDE + _TEXT) + _GAP
    figure = _figure(width, height, layout=None)
    levels = max(group.level or 1 for group in groups)
    colours = level_colours(levels)
    for row, group in enumerate(groups):
        # Fixed places: a long caption must never move or shrink a picture.
        top = 1 - (_GAP + row * (_SIDE + _TEXT)) / height
        colour = colours[group.level - 1] if group.level else _INK
        figure.text(
            0.5 * _LABEL / width, top - _SIDE / 2 / height, group.title, rotation=90,
            ha="center", va="center", fontsize=8, fontweight="bold", color=colour,
        )  # fmt: skip
        for column, example in enumerate(group.examples):
            left = (_LABEL + column * (_SIDE + _GAP)) / width
            box = (left, top - _SIDE / height, _SIDE / width, _SIDE / height)
            _draw_pair(figure.add_axes(box), example)
    return _png(figure)


def _draw_pair(axes: "Axes", example: Example) -> None:
    axes.set_axis_off()
    picture = thumbnail(example.image, _PICTURE_PIXELS) if example.image else None
    if picture:
        square = ImageOps.pad(picture, (_PICTURE_PIXELS, _PICTURE_PIXELS), color="white")
        axes.imshow(np.asarray(square), aspect="auto")
    else:
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", fontsize=6, color=_MUTED)
    caption = textwrap.wrap(printable(example.caption[:400]), 24, max_lines=4, placeholder=" …")
    for text, below, weight in (
        (score_text(example.score), 3, "bold"),
        ("\n".join(caption), 11, "normal"),
    ):
        axes.annotate(
            text, (0.5, 0), (0, -below), xycoords="axes fraction", textcoords="offset points",
            ha="center", va="top", fontsize=6, color=_INK, weight=weight, parse_math=False,
            linespacing=1.05,
        )  # fmt: skip


def _figure(width: float, height: float, layout: Any = "constrained") -> "Figure":
    """A figure of its own canvas: nothing of pyplot's global state is touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout=layout)


def _bare(axes: "Axes") -> "Axes":
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelsize=8, length=0, pad=4)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=_INK, fontsize=8)
    axes.yaxis.label.set(color=_INK, fontsize=8)
    return axes


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

    installed = set(get_font_names())
    families = [*(name for name in _SCRIPTS if name in installed), "DejaVu Sans"]
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    target = io.BytesIO()
    with warnings.catch_warnings():
        # A caption in a script without an installed font shows boxes: no news for the terminal.
        warnings.filterwarnings(
            "ignore", message=r"Glyph \d+|Matplotlib currently does not support"
        )
        FigureCanvasAgg(figure).print_png(target, metadata={"Software": None})
    return target.getvalue()
