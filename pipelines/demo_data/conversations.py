"""Questions about a demo image, with their answers from Unicode's labels, groups and tags."""

from __future__ import annotations

import random

from captions import group_name, usable_tags, with_article
from concepts import Concept

NAMING = ("What is this?", "What does the picture show?", "What is in the picture?")
GROUPING = ("Which group is this in?", "What kind of thing is this?")
CAPTIONING = ("Describe the picture in a few words.", "Give a short caption.")
ASKING = "Is this {}?"

Exchange = tuple[str, str]


def conversations(
    concept: Concept, decoy: Concept, rng: random.Random, *, named: bool = True
) -> tuple[list[Exchange], list[Exchange]]:
    """Two conversations on an image of `concept`.

    One opens with the question whether it is what it is, the other whether it is the `decoy`; a
    name or a group that was said before would give the answer away without the image. Then both
    ask for the group. If it is to be `named`, the last question of one is for the name, of the
    other for a caption.
    """
    name, group = with_article(concept.label), group_name(concept)
    right = ASKING.format(name), "Yes"
    wrong = ASKING.format(with_article(decoy.label)), "No"
    naming = rng.choice(NAMING), name
    captioning = rng.choice(CAPTIONING), short_caption(concept, rng)
    first, second = rng.sample([right, wrong], 2)
    last = ([naming], [captioning]) if named else ([], [])
    return (
        [first, (rng.choice(GROUPING), group), *last[0]],
        [second, (rng.choice(GROUPING), group), *last[1]],
    )


def short_caption(concept: Concept, rng: random.Random) -> str:
    """The name and up to two tags: `a sun, bright and sunny`."""
    name = with_article(concept.label)
    said = set(concept.label.lower().split())
    tags = [tag for tag in usable_tags(concept) if not set(tag.lower().split()) <= said]
    chosen = rng.sample(tags, min(2, len(tags)))
    return f"{name}, {' and '.join(chosen)}" if chosen else name
