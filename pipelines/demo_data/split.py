"""The concepts and drawings of the demo: what its model is trained on, and what it is asked about.

known     200 concepts, one a family, drawn by all six vendors: five are trained on, and the
drawings of the sixth are test images
unseen    one concept of each family that nothing has ever seen: not the demo CLIP, not the
language model, not the pairs; test images by the sixth vendor
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from captions import bare_label, usable_tags
from concepts import Concept, load_concepts
from npm_packages import DEFAULT_CACHE

TRAIN_STYLES = ("twemoji", "emojione", "fluent-modern", "fluent-flat", "fxemoji")
TEST_STYLE = "noto"
KNOWN = 200
LONGEST_LABEL = 2
SEED = 0
_GROUPS_LEFT_OUT = ("flags", "components")


@dataclass(frozen=True)
class Split:
    """Concepts in random order, and their drawings: `pixels[key, style]`, RGBA [64, 64, 4]."""

    known: list[Concept]
    unseen: list[Concept]
    pixels: Mapping[tuple[str, str], np.ndarray]


def load_split(cache: Path = DEFAULT_CACHE) -> Split:
    """Draw the concepts, and read the drawings that `drawings.py` has rendered into `cache`."""
    records = json.loads((cache / "drawings.json").read_text(encoding="utf-8"))
    drawn = np.load(cache / "drawings.npy", mmap_mode="r")
    pixels = {(r["key"], r["style"]): drawn[row] for row, r in enumerate(records)}
    styles: dict[str, set[str]] = defaultdict(set)
    for key, style in pixels:
        styles[key].add(style)
    known, unseen = choose_concepts(load_concepts(cache), styles)
    return Split(known, unseen, pixels)


def choose_concepts(
    concepts: Collection[Concept], styles: Mapping[str, Collection[str]]
) -> tuple[list[Concept], list[Concept]]:
    """Return the known and the unseen concepts, given the `styles` that draw each key.

    A concept has a name of at most two words and two tags, so that the kinds of caption differ.
    """
    rng = random.Random(f"split:{SEED}")
    families: dict[str, list[Concept]] = defaultdict(list)
    for concept in concepts:
        needed = {TEST_STYLE} if concept.unseen else {TEST_STYLE, *TRAIN_STYLES}
        if (
            needed <= set(styles.get(concept.key, ()))
            and concept.group not in _GROUPS_LEFT_OUT
            and len(usable_tags(concept)) >= 2
            and len(bare_label(concept.label).split()) <= LONGEST_LABEL
        ):
            families[concept.family].append(concept)
    drawn = [rng.choice(members) for _, members in sorted(families.items())]
    known = [concept for concept in drawn if not concept.unseen]
    return rng.sample(known, KNOWN), [concept for concept in drawn if concept.unseen]


def group_name(concept: Concept) -> str:
    """The group in words: `animals and nature`."""
    return concept.group.replace("&", "and")
