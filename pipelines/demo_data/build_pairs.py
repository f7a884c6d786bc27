"""Build the shipped demo pairs: drawings whose captions describe them well, vaguely or wrongly.

uv run pipelines/demo_data/drawings.py
uv run python pipelines/demo_data/build_pairs.py

Writes three Parquet files:

    pairs.parquet     100 concepts drawn by five vendors, each drawing with eight captions drawn
                      independently: 4,000 pairs
    further.parquet   drawings of 900 other concepts, two each, for conversations alone
    held_out.parquet  drawings of a sixth vendor with their full names: of the same concepts, and of
                      concepts that nothing was ever trained on

Most captions of the web are vague. Here too: a fifth gives the full name, 15 % one tag, 35 % the
group alone, and 30 % are those of other images, all in one template, so that only the content tells
one kind from another. Columns that no stage reads record the truth.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from captions import TEMPLATE, bare_label, group_name, usable_tags
from concepts import Concept
from npm_packages import DEFAULT_CACHE
from PIL import Image
from split import FURTHER_DRAWINGS, TEST_STYLE, TRAIN_STYLES, Split, load_split

logger = logging.getLogger("build_pairs")

OUTPUT = Path(__file__).parents[2] / "shared/src/alignshared/demo"
SEED = 20261130
CAPTIONS = 8
"""Captions of a drawing."""
SHARES = {"full": 0.20, "tag": 0.15, "group": 0.35, "mismatch": 0.30}
ROW_GROUP_ROWS = 256
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TEXTS = ("id", "caption", "concept", "group", "subgroup", "vendor")
FIELDS: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
    **{name: (pa.string(), {"dtype": "string", "_type": "Value"}) for name in _TEXTS},
    "image": (IMAGE_TYPE, {"_type": "Image"}),
    "tags": (
        pa.list_(pa.string()),
        {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    ),
    "caption_kind": (pa.string(), {"dtype": "string", "_type": "Value"}),
    "mismatched": (pa.bool_(), {"dtype": "bool", "_type": "Value"}),
    "unseen": (pa.bool_(), {"dtype": "bool", "_type": "Value"}),
}
"""Columns: their types in Arrow, and as `datasets` reads them."""
PAIR_COLUMNS = (
    "id", "image", "caption", "concept", "group", "subgroup", "tags", "vendor", "caption_kind",
    "mismatched",
)  # fmt: skip
FURTHER_COLUMNS = ("id", "image", "concept", "group", "subgroup", "tags", "vendor")
HELD_OUT_COLUMNS = (
    "id", "image", "caption", "concept", "group", "subgroup", "tags", "vendor", "unseen",
)  # fmt: skip


def png_on_white(pixels: np.ndarray) -> bytes:
    """Lay a drawing, RGBA [H, W, 4], on white and return it as an optimised RGB PNG."""
    drawing = Image.fromarray(pixels)
    white = Image.new("RGBA", drawing.size, "white")
    out = io.BytesIO()
    Image.alpha_composite(white, drawing).convert("RGB").save(out, "PNG", optimize=True)
    return out.getvalue()


def _words(concept: Concept) -> set[str]:
    text = " ".join((concept.label, concept.group, concept.subgroup, *concept.tags)).lower()
    return {word for word in re.findall(r"[a-z0-9]+", text) if len(word) > 2}


class Captions:
    """Captions of concepts among `concepts`, drawn from `rng`."""

    def __init__(self, concepts: list[Concept], rng: random.Random) -> None:
        self._rng = rng
        self._concepts = concepts
        self._said = {concept.key: _words(concept) for concept in concepts}

    def draw(self, concept: Concept) -> tuple[str, str]:
        """Return a caption and its kind."""
        kind = self._rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "full":
            text = bare_label(concept.label)
        elif kind == "tag":
            text = self._rng.choice(usable_tags(concept))
        elif kind == "group":
            text = group_name(concept)
        else:
            text = bare_label(self._stranger(concept).label)
        return TEMPLATE.format(text), kind

    def _stranger(self, concept: Concept) -> Concept:
        """Return a concept of another group that shares no word with `concept`."""
        while True:
            other = self._rng.choice(self._concepts)
            shared = self._said[other.key] & self._said[concept.key]
            if other.group != concept.group and not shared:
                return other


def _row(concept: Concept, style: str, png: bytes) -> dict[str, Any]:
    return {
        "image": {"bytes": png, "path": f"{style}/{concept.key}.png"},
        "concept": concept.label,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "tags": list(concept.tags),
        "vendor": style,
    }


def training_rows(split: Split) -> list[dict[str, Any]]:
    """Rows of the pairs, the drawings in random order, the captions of a drawing side by side."""
    rng = random.Random(SEED)
    captions = Captions(split.known, rng)
    drawings = [(concept, style) for concept in split.known for style in TRAIN_STYLES]
    rng.shuffle(drawings)
    rows: list[dict[str, Any]] = []
    for concept, style in drawings:
        row = _row(concept, style, png_on_white(split.pixels[concept.key, style]))
        for number in range(CAPTIONS):
            caption, kind = captions.draw(concept)
            rows.append(
                row
                | {
                    "id": f"{style}-{concept.key}-{number}",
                    "caption": caption,
                    "caption_kind": kind,
                    "mismatched": kind == "mismatch",
                }
            )
    return rows


def further_rows(split: Split) -> list[dict[str, Any]]:
    """Rows of drawings of the further concepts, each by vendors drawn at random."""
    rng = random.Random(SEED)
    rows: list[dict[str, Any]] = []
    for concept in split.further:
        styles = [style for style in TRAIN_STYLES if (concept.key, style) in split.pixels]
        for style in rng.sample(styles, FURTHER_DRAWINGS):
            png = png_on_white(split.pixels[concept.key, style])
            rows.append(_row(concept, style, png) | {"id": f"{style}-{concept.key}"})
    return rows


def held_out_rows(split: Split) -> list[dict[str, Any]]:
    """Rows of the test images, known concepts first, each with its full name."""
    return [
        _row(concept, TEST_STYLE, png_on_white(split.pixels[concept.key, TEST_STYLE]))
        | {
            "id": f"{TEST_STYLE}-{concept.key}",
            "caption": TEMPLATE.format(bare_label(concept.label)),
            "unseen": concept.unseen,
        }
        for concept in (*split.known, *split.unseen)
    ]


def write(rows: list[dict[str, Any]], columns: tuple[str, ...], path: Path) -> None:
    """Write `rows` as a Parquet file that `datasets` knows the images of.

    An image that stands in several rows is stored once: as a dictionary's entry.
    """
    info = {"info": {"features": {name: FIELDS[name][1] for name in columns}}}
    schema = pa.schema([(name, FIELDS[name][0]) for name in columns])
    table = pa.Table.from_pylist(
        rows, schema=schema.with_metadata({"huggingface": json.dumps(info)})
    )
    pq.write_table(
        table, path, row_group_size=ROW_GROUP_ROWS, compression="zstd",
        dictionary_pagesize_limit=16 << 20,
    )  # fmt: skip
    logger.info("%s: %d rows, %.2f MB", path, table.num_rows, path.stat().st_size / 1e6)


def main() -> None:
    """Parse the arguments, build the tables and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of drawings")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    split = load_split(args.cache)
    args.output.mkdir(parents=True, exist_ok=True)
    pairs = training_rows(split)
    write(pairs, PAIR_COLUMNS, args.output / "pairs.parquet")
    write(further_rows(split), FURTHER_COLUMNS, args.output / "further.parquet")
    write(held_out_rows(split), HELD_OUT_COLUMNS, args.output / "held_out.parquet")
    kinds = [row["caption_kind"] for row in pairs]
    logger.info("captions: %s", {kind: kinds.count(kind) for kind in SHARES})


if __name__ == "__main__":
    main()
