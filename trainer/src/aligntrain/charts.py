"""Where things stand in the figures of a report, in percent of their axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from aligntrain.evaluate.intervals import Interval


@dataclass(frozen=True, slots=True)
class Axis:
    """The range of an axis and its ticks: (position in percent, label)."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    @classmethod
    def over(cls, values: Sequence[float], about: int = 5) -> "Axis":
        """One that holds all of `values` with some space around, and nearly `about` ticks."""
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or max(abs(low), 1.0) * 0.05
        low, high = low - room, high + room
        rough = (high - low) / about
        power = 10 ** floor(log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
        digits = max(0, -floor(log10(step)))
        axis = cls(low, high, [])
        marks = range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)
        axis.ticks.extend((axis.at(k * step), _number(k * step, digits)) for k in marks)
        return axis

    def at(self, value: float) -> float:
        """Where `value` stands, in percent."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)


@dataclass(frozen=True, slots=True)
class Point:
    """A mean with its whisker at `x`; `low` is None where there is none."""

    x: float
    label: str
    level: int | None
    middle: float
    low: float | None
    height: float


@dataclass(frozen=True, slots=True)
class Dots:
    """Means side by side on one vertical axis; `zero` is where 0 stands, if it is to be drawn."""

    axis: Axis
    points: list[Point]
    zero: float | None


def dots(values: Sequence[tuple[str, int | None, Interval]], *, zero: bool = False) -> Dots:
    """`values`, each with a label and perhaps a level, which gives it its colour."""
    ends = [
        end
        for _, _, v in values
        for end in (
            v.mean,
            v.mean if v.low is None else v.low,
            v.mean if v.high is None else v.high,
        )
    ]
    axis = Axis.over([*ends, 0.0] if zero else ends)
    points: list[Point] = []
    for place, (label, level, value) in enumerate(values):
        low, high = (None if end is None else axis.at(end) for end in (value.low, value.high))
        height = 0.0 if low is None or high is None else round(high - low, 3)
        x = round(100 * (place + 0.5) / len(values), 3)
        points.append(Point(x, label, level, axis.at(value.mean), low, height))
    return Dots(axis, points, axis.at(0.0) if zero else None)


@dataclass(frozen=True, slots=True)
class Scatter:
    """Points of two axes as one SVG path in a box of 1000 by 1000."""

    x: Axis
    y: Axis
    path: str


def scatter(x: Sequence[float], y: Sequence[float]) -> Scatter:
    """Points at `x` and `y`, each a stroke without length, which a round cap makes a dot."""
    across, up = Axis.over(x, about=9), Axis.over(y)
    marks = (
        f"M{10 * across.at(a):g} {1000 - 10 * up.at(b):g}h0" for a, b in zip(x, y, strict=True)
    )
    return Scatter(across, up, "".join(marks))


def _number(value: Any, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 and text[0] == "-" else text).replace(
        "-", "\N{MINUS SIGN}"
    )
