"""Colours of pages and levels; figures in the colours of their page.

The levels' ramp, from clay (least aligned) over sand to teal (best aligned), is safe for all common
kinds of colour blindness and stays visible on white and near-black.
"""

import re

import numpy as np

INK, MUTED, RULE, PAPER = "#1f1e1b", "#67645c", "#d9d5ca", "#ffffff"
"""Colours of a figure, which `for_page` replaces by the page's own."""

_STOPS = ("#b5523b", "#d08a54", "#c9b26b", "#6fa58b", "#2f7f86", "#28587b")


def level_colours(levels: int) -> list[str]:
    """Hexadecimal colours of levels 1..`levels`, evenly along the ramp."""
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in _STOPS])
    at = np.linspace(0, len(stops) - 1, levels) if levels > 1 else np.array([len(stops) - 2.0])
    channels = [np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.round(np.stack(channels, 1)).astype(int)]


def without_fonts(svg: str) -> str:
    """Return the SVG element of matplotlib's document `svg`, in the fonts of its page.

    Ids are left out: on a page with several figures each would stand more than once.
    """
    extras = r"<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;\"]*;? ?"
    element = re.sub(extras, "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'<g id="[^"]*"', "<g", element)


def for_page(svg: str) -> str:
    """Return `without_fonts(svg)` in the colours of its page."""
    svg = without_fonts(svg)
    for colour, name in ((INK, "ink"), (MUTED, "muted"), (RULE, "rule"), (PAPER, "paper")):
        svg = svg.replace(colour, f"var(--{name})")
    return svg
