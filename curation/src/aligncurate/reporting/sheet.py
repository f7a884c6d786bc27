"""Search results as one HTML file with images."""

from dataclasses import dataclass
from typing import Any

from aligncurate.reporting.format import clip_middle, clip_text, score_text
from aligncurate.reporting.template import image_card, render
from alignshared.palette import level_colours


@dataclass(frozen=True, slots=True)
class SheetPair:
    """A search result; `cosine` is with the query, `score` its own."""

    rank: int
    cosine: float
    id: str
    caption: str | None
    score: float | None
    level: int | None
    image: bytes | None


@dataclass(frozen=True, slots=True)
class Sheet:
    """A query, the dataset searched, and the pairs found, nearest first."""

    dataset: str
    rows: int
    model: str
    over: str
    query: str
    image: bytes | None
    levels: int
    pairs: list[SheetPair]


def render_sheet(sheet: Sheet) -> str:
    """Render as HTML, without scripts or external resources; data is escaped."""
    return render(
        "sheet.html.j2",
        {
            "sheet": sheet,
            "query": clip_text(sheet.query),
            "query_image": image_card(sheet.image) if sheet.image is not None else None,
            "colours": level_colours(max(sheet.levels, 1)),
            "cards": [_card(pair) for pair in sheet.pairs],
        },
    )


def _card(pair: SheetPair) -> dict[str, Any]:
    return {
        "rank": pair.rank,
        "id": clip_middle(pair.id),
        "cosine": score_text(pair.cosine),
        "score": None if pair.score is None else score_text(pair.score),
        "level": pair.level,
        "caption": clip_text(pair.caption or ""),
        **image_card(pair.image),
    }
