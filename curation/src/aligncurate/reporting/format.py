"""Numbers and texts formatted for the page and the terminal."""

import json
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignshared import Dataset

CAPTION_LIMIT = 110
ID_LIMIT = 60

_MINUS = "\N{MINUS SIGN}"


def score_text(score: float | None, digits: int = 4) -> str:
    """A score to `digits` places with a true minus sign, or a dash if None."""
    if score is None or score != score:
        return "\N{EN DASH}"
    return f"{score:.{digits}f}".replace("-", _MINUS)


def share_text(share: float) -> str:
    """A share as percent."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def change_text(change: float) -> str:
    """A signed change of a share in percentage points."""
    sign = "+" if change > 0 else _MINUS if change < 0 else "±"
    return f"{sign}{100 * abs(change):.1f}"


def count_text(count: int, noun: str) -> str:
    """`1 pair`, `1,016 pairs`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def bytes_text(size: int) -> str:
    """A size in the largest decimal unit that gives at least 1."""
    value, units = float(size), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def clip_text(text: str, limit: int = CAPTION_LIMIT) -> str:
    """Return `text` on one printable line, shortened and with its full length if long."""
    head = " ".join(printable(text[: 4 * limit]).split())
    if len(head) <= limit and len(text) <= 4 * limit:
        return head
    return f"{head[:limit].rstrip()}\N{HORIZONTAL ELLIPSIS} ({len(text):,} characters)"


def clip_middle(text: str, limit: int = ID_LIMIT) -> str:
    """Shorten `text` in the middle if long, since ids and paths differ at their ends."""
    clean = printable(text)
    if len(clean) <= limit:
        return clean
    half = (limit - 1) // 2
    return f"{clean[:half]}\N{HORIZONTAL ELLIPSIS}{clean[-half:]}"


def printable(text: str) -> str:
    """Replace control characters in `text`, which might affect a terminal, with spaces."""
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)


def flat_config(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A configuration as dotted names and JSON values, strings unquoted."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flat_config(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((name, clip_middle(text, 240)))
    return rows


def dataset_name(dataset: "Dataset") -> str:
    """Name of the dataset's folder, or of its parent if named after the stage (`demo/score`)."""
    *_, parent, folder = ["", *dataset.location.rstrip("/").split("/")]
    return parent if folder == dataset.manifest.stage and parent else folder
