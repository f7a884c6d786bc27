"""Colours of the levels, from clay (least aligned) over sand to teal (best aligned).

The ramp is safe for all common kinds of colour blindness and stays visible on white and near-black.
"""

import numpy as np

_STOPS = ("#b5523b", "#d08a54", "#c9b26b", "#6fa58b", "#2f7f86", "#28587b")


def level_colours(levels: int) -> list[str]:
    """Hexadecimal colours of levels 1..`levels`, evenly along the ramp."""
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in _STOPS])
    at = np.linspace(0, len(stops) - 1, levels) if levels > 1 else np.array([len(stops) - 2.0])
    channels = [np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.round(np.stack(channels, 1)).astype(int)]
