"""Captions in the manner of the web: a full label sentence, a few tags, or the group only."""

from __future__ import annotations

import random
import re

from concepts import Concept

TEMPLATE = "a picture of {}"
"""The one template of all captions of the pairs."""
KINDS = ("full", "tags", "group")
KIND_WEIGHTS = (0.60, 0.25, 0.15)
FULL_TEMPLATES = (
    "{a}",
    "{a}",
    "{a}",
    "a picture of {a}",
    "a drawing of {a}",
    "an illustration of {a}",
    "an icon of {a}",
    "{label} icon",
    "{label} emoji",
    "{label} clip art",
    "{a}, {tag}",
    "{a}, {tag} and {tag2}",
    "{label} - {tag}",
)
TAG_TEMPLATES = ("{tags}", "{tags}", "{tags} icon", "clip art: {tags}", "picture of {tags}")
GROUP_TEMPLATES = ("{group}", "a picture from {group}", "{group} icon", "clip art, {group}")
# Labels whose head cannot take an article: plurals, crowds, and names of places and signs.
_NO_ARTICLE = re.compile(
    r"^(the |\d|men |women |people |[a-z]+s$)|\b(hands|eyes|skiers|fireworks|dice)$|o’clock|thirty$"
)
_COLON_FORMS = (
    ("flag: ", "the flag of {}"),
    ("keycap: ", "keycap {}"),
    ("family: ", "a family, {}"),
    ("kiss: ", "a kiss, {}"),
    ("couple with heart: ", "a couple with a heart, {}"),
    ("man: ", "a man with {}"),
    ("woman: ", "a woman with {}"),
    ("person: ", "a person with {}"),
)


def bare_label(label: str) -> str:
    """The label without colons and typographic quotes: `flag: Norway` -> `flag of Norway`."""
    return with_article(label).removeprefix("a ").removeprefix("an ").removeprefix("the ")


def with_article(label: str) -> str:
    """The label as a noun phrase: `grinning face` -> `a grinning face`."""
    text = label.replace("“", "").replace("”", "")
    for start, form in _COLON_FORMS:
        if text.startswith(start):
            return form.format(text.removeprefix(start))
    if _NO_ARTICLE.search(text) and not text.endswith("ss"):
        return text
    return f"{'an' if text[0].lower() in 'aeio' else 'a'} {text}"


def group_name(concept: Concept) -> str:
    """The group in words: `animals and nature`."""
    return concept.group.replace("&", "and")


def usable_tags(concept: Concept) -> list[str]:
    """Tags that say something beside the label and are words rather than emoticons."""
    label = concept.label.lower()
    return [tag for tag in concept.tags if tag.lower() != label and re.search(r"[a-z]{2}", tag)]


def full_caption(concept: Concept, rng: random.Random) -> str:
    """A sentence or phrase that carries the whole label, sometimes with a tag or two."""
    template = rng.choice(FULL_TEMPLATES)
    tags = usable_tags(concept)
    if "{tag" in template and len(tags) < 2:
        template = "{a}"
    first, second = rng.sample(tags, 2) if len(tags) >= 2 else ("", "")
    return template.format(
        a=with_article(concept.label), label=bare_label(concept.label), tag=first, tag2=second
    )


def tags_caption(concept: Concept, rng: random.Random) -> str:
    """One to three tags and no label: a poorer description of the same picture."""
    tags = usable_tags(concept)
    chosen = rng.sample(tags, min(len(tags), rng.choice((2, 2, 3))))
    joined = rng.choice((", ", " ", " and ")).join(chosen)
    return rng.choice(TAG_TEMPLATES).format(tags=joined)


def group_caption(concept: Concept, rng: random.Random) -> str:
    """The name of the group only: true, and nearly empty."""
    return rng.choice(GROUP_TEMPLATES).format(group=group_name(concept))


def caption_of(concept: Concept, kind: str, rng: random.Random) -> tuple[str, str]:
    """Return (caption, kind); a concept with fewer than two usable tags has a full one instead."""
    if kind == "group":
        return group_caption(concept, rng), kind
    if kind == "tags" and len(usable_tags(concept)) >= 2:
        return tags_caption(concept, rng), kind
    return full_caption(concept, rng), "full"
