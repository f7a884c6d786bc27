"""The pairs that a search found, as one HTML file with their pictures."""

from dataclasses import dataclass
from typing import Any

from aligncurate.reporting import format as words
from aligncurate.reporting.template import picture_card, render
from alignshared.palette import level_colours


@dataclass(frozen=True, slots=True)
class SheetPair:
    """A pair that was found; `cosine` is with the query, `score` its own."""

    rank: int
    cosine: float
    id: str
    caption: str | None
    score: float | None
    level: int | None
    image: bytes | None


@dataclass(frozen=True, slots=True)
class Sheet:
    """What was asked of which dataset, and what was found, the nearest first."""

    dataset: str
    rows: int
    model: str
    over: str
    query: str
    picture: bytes | None
    levels: int
    pairs: list[SheetPair]


def render_sheet(sheet: Sheet) -> str:
    """The HTML: no script, nothing fetched, every text of the data escaped."""
    return render(
        "sheet.html.j2",
        {
            "sheet": sheet,
            "query": words.clip_text(sheet.query),
            "asked": picture_card(sheet.picture) if sheet.picture is not None else None,
            "colours": level_colours(max(sheet.levels, 1)),
            "cards": [_card(pair) for pair in sheet.pairs],
        },
    )


def _card(pair: SheetPair) -> dict[str, Any]:
    return {
        "rank": pair.rank,
        "id": words.clip_middle(pair.id),
        "cosine": words.score_text(pair.cosine),
        "score": None if pair.score is None else words.score_text(pair.score),
        "level": pair.level,
        "caption": words.clip_text(pair.caption or ""),
        **picture_card(pair.image),
    }
