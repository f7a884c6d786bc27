"""The concepts and drawings of the demo: what its model is trained on, and what it is asked about.

known     100 concepts, one a family, drawn by all six vendors: five are trained on, and the
drawings of the sixth are test images
further   one concept of each of 900 other families: conversations are about these as well
unseen    one concept of each family that nothing has ever seen: not the demo CLIP, not the
language model, not the pairs, not the conversations; test images by the sixth vendor
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
KNOWN, FURTHER = 100, 900
FURTHER_DRAWINGS = 2
"""Drawings of a further concept, each by another vendor."""
LONGEST_LABEL = 2
SEED = 0
_GROUPS_LEFT_OUT = ("flags", "components")


@dataclass(frozen=True)
class Split:
    """Concepts in random order, and their drawings: `pixels[key, style]`, RGBA [64, 64, 4]."""

    known: list[Concept]
    further: list[Concept]
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
    return Split(*choose_concepts(load_concepts(cache), styles), pixels)


def choose_concepts(
    concepts: Collection[Concept], styles: Mapping[str, Collection[str]]
) -> tuple[list[Concept], list[Concept], list[Concept]]:
    """Return the known, the further and the unseen concepts, given the `styles` of each key.

    A known or unseen one has a name of at most two words and two tags, so that the kinds of
    caption differ.
    """
    rng = random.Random(f"split:{SEED}")
    clear: dict[str, list[Concept]] = defaultdict(list)
    drawn: dict[str, list[Concept]] = defaultdict(list)
    for concept in concepts:
        by = set(styles.get(concept.key, ()))
        if concept.group in _GROUPS_LEFT_OUT or not usable_tags(concept):
            continue
        needed = {TEST_STYLE} if concept.unseen else {TEST_STYLE, *TRAIN_STYLES}
        if (
            needed <= by
            and len(usable_tags(concept)) >= 2
            and len(bare_label(concept.label).split()) <= LONGEST_LABEL
        ):
            clear[concept.family].append(concept)
        if not concept.unseen and len(by & set(TRAIN_STYLES)) >= FURTHER_DRAWINGS:
            drawn[concept.family].append(concept)
    chosen = [rng.choice(members) for _, members in sorted(clear.items())]
    known = rng.sample([concept for concept in chosen if not concept.unseen], KNOWN)
    taken = {concept.family for concept in known}
    others = [
        rng.choice(members) for family, members in sorted(drawn.items()) if family not in taken
    ]
    unseen = [concept for concept in chosen if concept.unseen]
    return known, rng.sample(others, FURTHER), unseen
