"""Pages from templates: every text of the data is escaped, and nothing may be left undefined."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aligncurate.reporting import format as words
from alignshared.thumbnails import data_uri, thumbnail


def render(template: str, context: Mapping[str, Any]) -> str:
    """The text of `template`, a file of this folder, for `context`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": words.score_text,
        "share": words.share_text,
        "change": words.change_text,
        "clip": words.clip_text,
        "clip_middle": words.clip_middle,
        "size": words.bytes_text,
        "thousands": lambda count: f"{count:,}",
    }
    return environment.get_template(template).render(context)


def picture_card(data: bytes | None) -> dict[str, Any]:
    """What a card shows of a picture: a small copy, or why there is none."""
    picture = thumbnail(data) if data else None
    return {
        "width": picture.width if picture else 0,
        "height": picture.height if picture else 0,
        "uri": data_uri(picture) if picture else None,
        "missing": "cannot be decoded" if data else "not in the dataset",
    }
