"""Search results, and their page: one HTML file with images."""

from dataclasses import dataclass
from typing import Literal

from aligncurate.reporting.format import clip_text
from aligncurate.reporting.template import image_card, pair_card, render
from alignshared import ModelInfo
from alignshared.palette import level_colours

Over = Literal["images", "captions"]


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result: the `cosine` of its embedding with the query's, and its contents.

    `score` is the pair's own, `level` is None without levels, `image` holds the image bytes and
    `path` its name, if stored in the dataset.
    """

    rank: int
    cosine: float
    id: str
    caption: str | None
    score: float | None
    level: int | None
    path: str | None
    image: bytes | None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Query over `dataset` and the pairs found, nearest first.

    `query` is the text, or the path of the image whose bytes are in `image`.
    """

    dataset: str
    rows: int
    model: ModelInfo
    over: Over
    query: str
    image: bytes | None
    hits: list[Hit]


def render_sheet(result: SearchResult) -> str:
    """Render as HTML, without scripts or external resources; data is escaped."""
    levels = max((hit.level or 0 for hit in result.hits), default=0)
    cards = [(hit, pair_card(hit.id, hit.caption, hit.score, hit.image)) for hit in result.hits]
    context = {
        "result": result,
        "query": clip_text(result.query),
        "query_image": image_card(result.image) if result.image is not None else None,
        "colours": level_colours(max(levels, 1)),
        "cards": cards,
    }
    return render("sheet.html.j2", context)
