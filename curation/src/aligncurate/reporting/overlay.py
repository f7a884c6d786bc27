"""The geometry of two histograms of scores over each other, as shares of each dataset."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from aligncurate.core.histogram import Histogram
from aligncurate.reporting.chart import score_label, ticks
from alignshared import LevelEdges

_HEADROOM = 1.06
_PERCENT = "\N{NARROW NO-BREAK SPACE}%"


@dataclass(frozen=True, slots=True)
class SharesInBins:
    """Shares [b] of both datasets in the same bins between `ends` [b+1]."""

    ends: npt.NDArray[np.float64]
    base: npt.NDArray[np.float64]
    other: npt.NDArray[np.float64]
    width: float

    @property
    def top(self) -> float:
        """Where the vertical axis ends."""
        return float(max(self.base.max(), self.other.max())) * _HEADROOM


def shares_in_bins(base: Histogram, other: Histogram) -> SharesInBins:
    """Both histograms in the bins that show both of them whole."""
    ours, theirs = base.bins(beside=other), other.bins(beside=base)
    return SharesInBins(
        ours.ends, ours.counts / base.count, theirs.counts / other.count, ours.width
    )


@dataclass(frozen=True, slots=True)
class Overlay:
    """SVG paths in a box of 1000 by 1000, and positions of labels in percent, as in
    `chart.Chart`.
    """

    base: str
    other: str
    edges: list[float]
    bands: list[tuple[str, float, float]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    bin_width: str


def lay_out_overlay(base: Histogram, other: Histogram, edges: LevelEdges | None) -> Overlay:
    """The chart of both; `edges`, the base's, are drawn where there are any."""
    shares = shares_in_bins(base, other)
    left, right = float(shares.ends[0]), float(shares.ends[-1])
    span = right - left

    def x(score: float) -> float:
        return round((min(max(score, left), right) - left) / span * 100, 3)

    cuts = [x(edge) for edge in edges.edges] if edges else []
    bounds = [0.0, *cuts, 100.0]
    bands = [
        (str(level), begin, round(end - begin, 3))
        for level, (begin, end) in enumerate(pairwise(bounds), start=1)
        if end > begin
    ]
    return Overlay(
        base=_path(shares.base, shares, closed=True),
        other=_path(shares.other, shares, closed=False),
        edges=cuts,
        bands=bands if edges else [],
        x_ticks=[(x(t), score_label(t, span)) for t in ticks(left, right, 7)],
        y_ticks=[
            (round(t / shares.top * 100, 3), f"{100 * t:g}{_PERCENT}")
            for t in ticks(0, shares.top, 4)
        ],
        bin_width=f"{shares.width:g}",
    )


def _path(heights: npt.NDArray[np.float64], shares: SharesInBins, *, closed: bool) -> str:
    count = len(heights)
    steps = "".join(
        f"V{1000 * (1 - height / shares.top):.2f}H{1000 * i / count:.2f}"
        for i, height in enumerate(heights.tolist(), start=1)
    )
    return f"M0 1000{steps}V1000{'Z' if closed else ''}"
