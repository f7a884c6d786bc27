"""Concepts: what the drawings show, by Unicode's label, tags and group, and how they are split."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npm_packages import DEFAULT_CACHE, EMOJIBASE, NOTO, read_member

UNSEEN_SHARE = 0.15
# Words that make two concepts the same drawing with another person in it.
PERSON_WORDS = frozenset(
    [
        "man",
        "men",
        "woman",
        "women",
        "person",
        "people",
        "boy",
        "girl",
        "boys",
        "girls",
        "child",
        "mr",
        "mrs",
        "mx",
        "santa",
        "claus",
        "prince",
        "princess",
        "king",
        "queen",
        "merman",
        "mermaid",
        "merperson",
    ]
)


@dataclass(frozen=True)
class Concept:
    """One base concept (no skin tones): `key` is the lower-case hexcode without variation selector.

    `names` are all spellings under which vendors file the drawing, letters and digits only.
    """

    key: str
    label: str
    group: str
    subgroup: str
    tags: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def family(self) -> str:
        """Concepts of one family (man / woman / person doing the same) are held out together."""
        words = re.findall(r"[a-z0-9#*]+", self.label.lower())
        return " ".join(word for word in words if word not in PERSON_WORDS) or "person"

    @property
    def unseen(self) -> bool:
        """Whether the concept is held out of training in every vendor: 15 % of families, by
        hash.
        """
        digest = hashlib.sha256(f"alignstack-demo:{self.family}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < UNSEEN_SHARE


def hex_key(hexcode: str) -> str:
    """Normalise a hexcode: lower case, variation selector 16 left out."""
    return hexcode.lower().replace("-fe0f", "")


def squash(name: str) -> str:
    """Letters and digits of a name only, lower case: vendors differ in everything else."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _names(entry: dict[str, Any], source: dict[str, Any]) -> tuple[str, ...]:
    spellings = [entry["label"], source.get("name") or "", *source.get("short_names", [])]
    return tuple(dict.fromkeys(squash(name) for name in spellings if squash(name)))


def load_concepts(cache: Path = DEFAULT_CACHE) -> list[Concept]:
    """Read every base concept that has a group, in Unicode's order."""
    entries = json.loads(read_member(EMOJIBASE, "en/data.json", cache))
    messages = json.loads(read_member(EMOJIBASE, "en/messages.json", cache))
    sources = {hex_key(e["unified"]): e for e in json.loads(read_member(NOTO, "emoji.json", cache))}
    groups = {entry["order"]: entry["message"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["message"] for entry in messages["subgroups"]}
    concepts = []
    for entry in sorted((e for e in entries if "group" in e), key=lambda e: e["order"]):
        key = hex_key(entry["hexcode"])
        concepts.append(
            Concept(
                key=key,
                label=entry["label"],
                group=groups[entry["group"]],
                subgroup=subgroups[entry["subgroup"]],
                tags=tuple(entry.get("tags", ())),
                names=_names(entry, sources.get(key, {})),
            )
        )
    return concepts
