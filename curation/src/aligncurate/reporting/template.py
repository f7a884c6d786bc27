"""HTML from templates, with data escaped and undefined variables refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligncurate.reporting import format
from alignshared.images import data_uri, thumbnail


def render(template: str, context: Mapping[str, Any], folder: Path | None = None) -> str:
    """Render `template`, a file in `templates/`, or in `folder`, with `context`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*filter(None, [folder]), Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": format.score_text,
        "share": format.share_text,
        "change": format.change_text,
        "clip": format.clip_text,
        "clip_middle": format.clip_middle,
        "size": format.bytes_text,
        "thousands": lambda count: f"{count:,}",
    }
    return environment.get_template(template).render(context)


def pair_card(
    id: str, caption: str | None, score: float | None, image: bytes | None
) -> dict[str, Any]:
    """Fields of a pair's card: its texts, shortened, and its image."""
    return {
        "id": format.clip_middle(id),
        "caption": format.clip_text(caption or ""),
        "score": format.score_text(score),
        **image_card(image),
    }


def image_card(data: bytes | None) -> dict[str, Any]:
    """Fields of a card's image: a thumbnail, or the reason there is none."""
    image = thumbnail(data) if data else None
    return {
        "width": image.width if image else 0,
        "height": image.height if image else 0,
        "uri": data_uri(image) if image else None,
        "missing": "cannot be decoded" if data else "not in the dataset",
    }
