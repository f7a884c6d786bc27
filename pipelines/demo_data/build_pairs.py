"""Build the shipped demo pairs: Noto drawings with captions made from Unicode's labels and tags.

uv run python pipelines/demo_data/build_pairs.py
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from captions import KIND_WEIGHTS, KINDS, caption_of
from concepts import Concept, hex_key, load_concepts
from npm_packages import DEFAULT_CACHE, NOTO, read_members
from PIL import Image

logger = logging.getLogger("build_pairs")

OUTPUT = Path(__file__).parents[2] / "shared/src/alignshared/demo/pairs.parquet"
SEED = 20240617
MISMATCHED_SHARE = 0.10
ROW_GROUP_ROWS = 256
MAX_DRAWS = 1000
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", IMAGE_TYPE),
        ("caption", pa.string()),
        ("concept", pa.string()),
        ("group", pa.string()),
        ("subgroup", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("caption_kind", pa.string()),
        ("mismatched", pa.bool_()),
    ]
)
FEATURES = {
    "id": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "caption": {"dtype": "string", "_type": "Value"},
    "concept": {"dtype": "string", "_type": "Value"},
    "group": {"dtype": "string", "_type": "Value"},
    "subgroup": {"dtype": "string", "_type": "Value"},
    "tags": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "caption_kind": {"dtype": "string", "_type": "Value"},
    "mismatched": {"dtype": "bool", "_type": "Value"},
}


def flatten_png(data: bytes) -> bytes:
    """Lay a PNG on white and return it as an optimised RGB PNG of the same size."""
    drawing = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", drawing.size, "white")
    out = io.BytesIO()
    Image.alpha_composite(white, drawing).convert("RGB").save(out, "PNG", optimize=True)
    return out.getvalue()


def _words(concept: Concept) -> set[str]:
    text = " ".join((concept.label, concept.group, concept.subgroup, *concept.tags)).lower()
    return {word for word in re.findall(r"[a-z0-9]+", text) if len(word) > 2}


def derange(rows: list[int], concepts: list[Concept], rng: random.Random) -> dict[int, int]:
    """Give every row another row's caption: row -> donor, a permutation without fixed points.

    Donor and row are of different groups and share no word in label, tags, group or subgroup, so
    that the caption is wrong. Raises RuntimeError when no such permutation is found.
    """
    words = {row: _words(concepts[row]) for row in rows}
    for _ in range(MAX_DRAWS):
        free = rng.sample(rows, len(rows))
        donors: dict[int, int] = {}
        for row in rows:
            donor = next(
                (
                    other
                    for other in free
                    if concepts[other].group != concepts[row].group
                    and not words[other] & words[row]
                ),
                None,
            )
            if donor is None:
                break
            free.remove(donor)
            donors[row] = donor
        if len(donors) == len(rows):
            return donors
    raise RuntimeError(f"no derangement of {len(rows)} rows found in {MAX_DRAWS} draws")


def build_table(cache: Path) -> pa.Table:
    """Compose the table: one row a concept that Noto draws, shuffled, a tenth mismatched."""
    drawings = read_members(NOTO, "img/google/64/", ".png", cache)
    by_key = {hex_key(name.removesuffix(".png")): data for name, data in drawings.items()}
    concepts = [concept for concept in load_concepts(cache) if concept.key in by_key]
    rng = random.Random(SEED)
    rng.shuffle(concepts)
    kinds = rng.choices(KINDS, KIND_WEIGHTS, k=len(concepts))
    made = [caption_of(c, kind, rng) for c, kind in zip(concepts, kinds, strict=True)]
    specific = [row for row, (_, kind) in enumerate(made) if kind != "group"]
    chosen = sorted(rng.sample(specific, round(MISMATCHED_SHARE * len(concepts))))
    donors = derange(chosen, concepts, rng)
    rows = []
    for row, concept in enumerate(concepts):
        caption, kind = made[donors.get(row, row)]
        rows.append(
            {
                "id": concept.key,
                "image": {
                    "bytes": flatten_png(by_key[concept.key]),
                    "path": f"noto/{concept.key}.png",
                },
                "caption": caption,
                "concept": concept.label,
                "group": concept.group,
                "subgroup": concept.subgroup,
                "tags": list(concept.tags),
                "caption_kind": kind,
                "mismatched": row in donors,
            }
        )
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))


def main() -> None:
    """Parse the arguments, build the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of npm tarballs")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    table = build_table(args.cache)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, args.output, row_group_size=ROW_GROUP_ROWS, compression="zstd")
    kinds = {kind: table["caption_kind"].to_pylist().count(kind) for kind in KINDS}
    logger.info(
        "%s: %d pairs, %.2f MB, kinds %s, mismatched %d",
        args.output,
        table.num_rows,
        args.output.stat().st_size / 1e6,
        kinds,
        sum(table["mismatched"].to_pylist()),
    )


if __name__ == "__main__":
    main()
