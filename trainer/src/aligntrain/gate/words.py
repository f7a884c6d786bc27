"""How numbers and texts are written on the page of a report."""

import unicodedata

from aligntrain.evaluate.intervals import Correlation, Interval

TEXT_LIMIT = 110
DASH = "\N{EN DASH}"


def number(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` places with a true minus sign, a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float, digits: int = 1) -> str:
    """A share of 1 as percent."""
    return f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def interval(value: Interval | Correlation, digits: int = 3) -> str:
    """The ends of an interval, or that there is none."""
    if value.low is None or value.high is None:
        return "too few for an interval"
    return f"{number(value.low, digits)} to {number(value.high, digits)}"


def clip(text: str, limit: int = TEXT_LIMIT) -> str:
    """`text` on one line, without control characters; a long one is cut."""
    clean = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text[: 4 * limit])
    head = " ".join(clean.split())
    if len(head) <= limit and len(text) <= 4 * limit:
        return head
    return f"{head[:limit].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def relation(r: Correlation) -> str:
    """What a coefficient of correlation says, in a few words."""
    if r.r is None:
        return "one of the two does not vary, so there is nothing to correlate"
    if r.low is None or r.high is None:
        return "too few to say"
    if r.low <= 0 <= r.high:
        return "the interval holds 0: no relation is shown"
    strength = next(word for least, word in _STRENGTHS if abs(r.r) >= least)
    return f"a {strength} {'positive' if r.r > 0 else 'negative'} relation"


_STRENGTHS = ((0.5, "strong"), (0.3, "moderate"), (0.1, "weak"), (0.0, "very weak"))
"""Cohen's words for a coefficient (Statistical Power Analysis, 1988)."""
