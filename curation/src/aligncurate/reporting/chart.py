"""The geometry of the histogram of scores, for the page and for the PNG alike."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

from aligncurate.core.histogram import Bins
from alignshared import LevelEdges

_Scale = Callable[[float], float]
"""From a score or a count to percent of its axis."""


@dataclass(frozen=True, slots=True)
class Area:
    """What lies under the histogram within one level: steps of `heights` between `ends`, left to
    right.
    """

    level: int
    ends: list[float]
    heights: list[int]


def level_areas(bins: Bins, edges: LevelEdges | None) -> list[Area]:
    """The histogram cut at the edges, so that each level can have its colour; level 1 first.

    A bin that an edge goes through has the same height on both sides: its count is that of the
    whole bin.
    """
    left, right = float(bins.ends[0]), float(bins.ends[-1])
    cuts = [min(max(edge, left), right) for edge in edges.edges] if edges else []
    areas = []
    for level, (begin, end) in enumerate(pairwise([left, *cuts, right]), start=1):
        inner = [float(e) for e in bins.ends if begin < e < end]
        ends = [begin, *inner, end]
        heights = [_height_at(bins, (a + b) / 2) for a, b in pairwise(ends)]
        if end > begin:
            areas.append(Area(level, ends, heights))
    return areas


def _height_at(bins: Bins, score: float) -> int:
    at = int((score - bins.ends[0]) / (bins.ends[-1] - bins.ends[0]) * len(bins.counts))
    return int(bins.counts[min(at, len(bins.counts) - 1)])


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within [`low`, `high`], nearly `about` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10 ** floor(log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    return [
        round(k * step, 10) for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)
    ]


@dataclass(frozen=True, slots=True)
class Band:
    """A level on the horizontal axis: where it begins and how wide it is, in percent of the
    axis.
    """

    level: int
    left: float
    width: float
    path: str


@dataclass(frozen=True, slots=True)
class Chart:
    """The histogram as SVG paths in a box of 1000 by 1000, and positions of its labels in percent.

    The box is stretched to the page, so labels are no part of it: text keeps its size on any
    screen.
    """

    bands: list[Band]
    edges: list[float]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    mean: float
    bin_width: str


def lay_out(bins: Bins, edges: LevelEdges | None, mean: float) -> Chart:
    """The chart of `bins`, with `edges` drawn where there are any."""
    left, right = float(bins.ends[0]), float(bins.ends[-1])
    top = float(bins.counts.max()) * 1.06
    span = right - left

    def x(score: float) -> float:
        return round((min(max(score, left), right) - left) / span * 100, 3)

    def y(count: float) -> float:
        return round(count / top * 100, 3)

    bands = [
        Band(a.level, x(a.ends[0]), round(x(a.ends[-1]) - x(a.ends[0]), 3), _path(a, x, y))
        for a in level_areas(bins, edges)
    ]
    counts = [t for t in ticks(0, top, 4) if t == int(t)]
    return Chart(
        bands=bands,
        edges=[x(e) for e in edges.edges] if edges else [],
        x_ticks=[(x(t), score_label(t, span)) for t in ticks(left, right, 7)],
        y_ticks=[(y(t), f"{int(t):,}") for t in counts],
        mean=x(mean),
        bin_width=f"{bins.width:g}",
    )


def _path(area: Area, x: _Scale, y: _Scale) -> str:
    steps = "".join(
        f"V{1000 - 10 * y(height):g}H{10 * x(end):g}"
        for end, height in zip(area.ends[1:], area.heights, strict=True)
    )
    return f"M{10 * x(area.ends[0]):g} 1000{steps}V1000Z"


def score_label(score: float, span: float) -> str:
    """`score` with as many digits as tell ticks apart on an axis of `span`, and a true minus
    sign.
    """
    digits = 2 if span > 0.08 else 3 if span > 0.008 else 4
    return f"{score:.{digits}f}".replace("-", "\N{MINUS SIGN}")
