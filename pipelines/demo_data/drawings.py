# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=1.26", "pillow>=11", "resvg-py==0.2.6"]
# ///
"""Render every drawing of every vendor once, as 64-pixel RGBA, into one array.

uv run pipelines/demo_data/drawings.py

Writes `drawings.npy`, uint8 [N, 64, 64, 4] with straight alpha, and `drawings.json`, a list of N
records {key, style}, into the cache. `noto` is the held-out vendor: it is rendered for evaluation
and never trained on.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import resvg_py  # pyright: ignore[reportMissingImports] (of the script's own environment)
from concepts import Concept, hex_key, load_concepts, squash
from npm_packages import (
    DEFAULT_CACHE,
    EMOJIONE,
    FLUENT,
    FXEMOJI,
    NOTO,
    STREAMLINE,
    TWEMOJI,
    NpmPackage,
    read_member,
    read_members,
)
from PIL import Image
from split import TEST_STYLE

logger = logging.getLogger("drawings")

SIZE = 64
# Fluent files a person once a skin tone; only the default (yellow) one is a base concept.
_SKIN_TONE = re.compile(r"-(dark|light|medium|medium-dark|medium-light)$")


def _from_png(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8)


def _from_svg(svg: str) -> np.ndarray:
    rendered = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
    image = Image.open(io.BytesIO(bytes(rendered))).convert("RGBA")
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(canvas, dtype=np.uint8)


def _by_hexcode(
    package: NpmPackage, folder: str, concepts: list[Concept], cache: Path
) -> Iterator[tuple[Concept, np.ndarray]]:
    """Drawings that the vendor files as PNG under their hexcode."""
    files = read_members(package, folder, ".png", cache)
    by_key = {hex_key(name.removesuffix(".png")): data for name, data in files.items()}
    for concept in concepts:
        if concept.key in by_key:
            yield concept, _from_png(by_key[concept.key])


def _by_name(svgs: dict[str, str], concepts: list[Concept]) -> Iterator[tuple[Concept, np.ndarray]]:
    """Drawings that the vendor files as SVG under a name; flags' names are too loose to match."""
    by_name = {squash(name): svg for name, svg in svgs.items()}
    for concept in concepts:
        found = next((by_name[name] for name in concept.names if name in by_name), None)
        if found is not None and concept.group != "flags":
            yield concept, _from_svg(found)


def fluent_svgs(style: str, cache: Path) -> dict[str, str]:
    """Fluent's SVGs of one style (modern, flat, high-contrast), without skin tones."""
    files = read_members(FLUENT, f"icons/{style}/", ".svg", cache)
    stems = {name.removesuffix(".svg"): data.decode() for name, data in files.items()}
    with_default = {stem.removesuffix("-default") for stem in stems if stem.endswith("-default")}
    return {
        stem.removesuffix("-default"): svg
        for stem, svg in stems.items()
        if _SKIN_TONE.sub("", stem) == stem or _SKIN_TONE.sub("", stem) not in with_default
    }


def iconify_svgs(package: NpmPackage, cache: Path) -> dict[str, str]:
    """The SVGs of an Iconify collection, composed from their bodies."""
    icons = json.loads(read_member(package, "icons.json", cache))
    side = icons.get("width", 16), icons.get("height", 16)
    return {
        name: (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} '
            f'{icon.get("width", side[0])} {icon.get("height", side[1])}">{icon["body"]}</svg>'
        )
        for name, icon in icons["icons"].items()
    }


def all_drawings(concepts: list[Concept], cache: Path) -> Iterator[tuple[str, Concept, np.ndarray]]:
    """Yield (style, concept, uint8 [64, 64, 4]) over all vendors."""
    sources = {
        TEST_STYLE: _by_hexcode(NOTO, "img/google/64/", concepts, cache),
        "twemoji": _by_hexcode(TWEMOJI, "img/twitter/64/", concepts, cache),
        "emojione": _by_hexcode(EMOJIONE, "assets/png_128x128/", concepts, cache),
        "fluent-modern": _by_name(fluent_svgs("modern", cache), concepts),
        "fluent-flat": _by_name(fluent_svgs("flat", cache), concepts),
        "fluent-high-contrast": _by_name(fluent_svgs("high-contrast", cache), concepts),
        "fxemoji": _by_name(iconify_svgs(FXEMOJI, cache), concepts),
        "streamline": _by_name(iconify_svgs(STREAMLINE, cache), concepts),
    }
    for style, drawings in sources.items():
        count = 0
        for count, (concept, pixels) in enumerate(drawings, start=1):  # noqa: B007
            yield style, concept, pixels
        logger.info("%s: %d drawings", style, count)


def main() -> None:
    """Parse the arguments, render and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records, pixels = [], []
    for style, concept, drawing in all_drawings(load_concepts(args.cache), args.cache):
        records.append({"key": concept.key, "style": style})
        pixels.append(drawing)
    np.save(args.cache / "drawings.npy", np.stack(pixels))
    (args.cache / "drawings.json").write_text(json.dumps(records))
    logger.info("%d drawings in %s", len(records), args.cache / "drawings.npy")


if __name__ == "__main__":
    main()
