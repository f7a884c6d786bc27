"""Make instruction data of the demo pictures from Unicode's labels, groups and tags.

uv run python pipelines/demo_data/build_instructions.py --output data/demo/instructions

Writes LLaVA's instruction JSON and its pictures:

    instructions.json   conversations on every picture, for `aligncurate ingest`
    questions.json      questions, with their answers, on concepts that training never sees
    images/ID.png

What a run with the same validation share keeps for validation, by hash of the ids of pictures, is
what is held out here: in pretraining too, since the ids are those of the demo pairs. What is asked
in questions.json is stricter: no concept of the same family (man, woman or person golfing) is in
training either.
"""

import argparse
import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from captions import usable_tags, with_article
from concepts import Concept

from alignshared.demo import pairs_path
from aligntrain.data.index import Index, hash_ids
from aligntrain.recipes import load_recipe

logger = logging.getLogger("build_instructions")

SEED = 0
NAMING = ("What is this?", "What does the picture show?", "What is in the picture?")
GROUPING = ("Which group is this in?", "What kind of thing is this?")
CAPTIONING = ("Describe the picture in a few words.", "Give a short caption.")
ASKING = "Is this {}?"

Exchange = tuple[str, str]


@dataclass(frozen=True)
class Picture:
    """A demo picture and what it shows."""

    concept: Concept
    png: bytes
    held_out: bool

    @property
    def id(self) -> str:
        """That of the demo pair."""
        return self.concept.key

    @property
    def file(self) -> str:
        """Where its PNG is written, in the output folder."""
        return f"images/{self.id}.png"

    @property
    def name(self) -> str:
        """A noun phrase, article and all."""
        return with_article(self.concept.label)

    @property
    def group(self) -> str:
        """In words, as in the captions: `animals and nature`."""
        return self.concept.group.replace("&", "and")


def demo_pictures(share: float, path: Path | None = None) -> list[Picture]:
    """The pictures of the demo pairs, `share` of them held out as `aligntrain` does it."""
    rows = pq.read_table(path or pairs_path()).to_pylist()
    held_out = set(_held_out([row["id"] for row in rows], share))
    return [
        Picture(
            Concept(
                row["id"], row["concept"], row["group"], row["subgroup"], tuple(row["tags"]), ()
            ),
            row["image"]["bytes"],
            number in held_out,
        )
        for number, row in enumerate(rows)
    ]


def _held_out(ids: Sequence[str], share: float) -> list[int]:
    everywhere = np.ones(len(ids), dtype=np.bool_)
    index = Index(everywhere.astype(np.int32), everywhere, hash_ids(ids), 0)
    return index.validation_rows(share).tolist()


def decoys(pictures: Sequence[Picture], rng: random.Random) -> list[Picture]:
    """For each picture one of another group; each serves once, so that no name alone tells a no.

    Raises:
        ValueError: more than half of the pictures are of one group.
    """
    largest = max(Counter(picture.group for picture in pictures).values())
    if 2 * largest > len(pictures):
        raise ValueError("more than half of the pictures are of one group.")
    drawn = rng.sample(pictures, len(pictures))
    while clashing := [
        at for at, (own, other) in enumerate(zip(pictures, drawn, strict=True))
        if own.group == other.group
    ]:  # fmt: skip
        for at in clashing:
            other = rng.randrange(len(drawn))
            drawn[at], drawn[other] = drawn[other], drawn[at]
    return drawn


def conversations(
    picture: Picture, decoy: Picture, rng: random.Random
) -> tuple[list[Exchange], list[Exchange]]:
    """Two conversations on `picture`, of three exchanges each.

    One opens with the question whether it is what it is, the other whether it is the `decoy`; a
    name or a group that was said before would give the answer away without the picture. Then both
    ask for the group; the last question of one is for the name, of the other for a caption.
    """
    right = ASKING.format(picture.name), "Yes"
    wrong = ASKING.format(decoy.name), "No"
    naming = rng.choice(NAMING), picture.name
    captioning = rng.choice(CAPTIONING), short_caption(picture, rng)
    first, second = rng.sample([right, wrong], 2)
    return (
        [first, (rng.choice(GROUPING), picture.group), naming],
        [second, (rng.choice(GROUPING), picture.group), captioning],
    )


def short_caption(picture: Picture, rng: random.Random) -> str:
    """The name and up to two tags: `a sun, bright and sunny`."""
    said = set(picture.concept.label.lower().split())
    tags = [tag for tag in usable_tags(picture.concept) if not set(tag.lower().split()) <= said]
    chosen = rng.sample(tags, min(2, len(tags)))
    return f"{picture.name}, {' and '.join(chosen)}" if chosen else picture.name


def instructions(pictures: Sequence[Picture], seed: int) -> list[dict[str, Any]]:
    """Records of LLaVA's format, two a picture, in random order; held-out pictures and the others
    are decoys among themselves.
    """
    rng = random.Random(f"instructions:{seed}")
    records: list[dict[str, Any]] = []
    for held_out in (False, True):
        side = [picture for picture in pictures if picture.held_out is held_out]
        for picture, decoy in zip(side, decoys(side, rng) if side else [], strict=True):
            for exchanges in conversations(picture, decoy, rng):
                turns: list[dict[str, str]] = []
                for number, (question, answer) in enumerate(exchanges):
                    mark = "<image>\n" if number == 0 else ""
                    turns.append({"from": "human", "value": mark + question})
                    turns.append({"from": "gpt", "value": answer})
                record = {"id": picture.id, "image": picture.file, "conversations": turns}
                records.append(record)
    rng.shuffle(records)
    return records


def questions(pictures: Sequence[Picture], seed: int) -> list[dict[str, Any]]:
    """What to ask about held-out pictures of which no relative is in training.

    Each has `id`, `image`, `kind` (`is_this`, as often yes as no, `group` or `name`), `question`,
    `answer`, and whether the demo CLIP was trained with other drawings of the concept.
    """
    rng = random.Random(f"questions:{seed}")
    known = {picture.concept.family for picture in pictures if not picture.held_out}
    asked = [p for p in pictures if p.held_out and p.concept.family not in known]
    found: list[dict[str, Any]] = []
    for picture, decoy in zip(asked, decoys(asked, rng) if asked else [], strict=True):
        for kind, question, answer in (
            ("is_this", ASKING.format(picture.name), "Yes"),
            ("is_this", ASKING.format(decoy.name), "No"),
            ("group", GROUPING[0], picture.group),
            ("name", NAMING[0], picture.name),
        ):
            found.append(
                {
                    "id": picture.id,
                    "image": picture.file,
                    "kind": kind,
                    "question": question,
                    "answer": answer,
                    "clip_knows_concept": not picture.concept.unseen,
                }
            )
    return found


def build(output: Path, *, seed: int = SEED, share: float | None = None) -> tuple[int, int]:
    """Write everything into the folder `output`; the JSON files last.

    `share` of the pictures is held out, by default what the recipe `demo` has.

    Returns:
        The numbers of records and of questions.
    """
    if share is None:
        share = load_recipe("demo", "finetune").data.validation_share
    pictures = demo_pictures(share)
    (output / "images").mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (output / picture.file).write_bytes(picture.png)
    records, asked = instructions(pictures, seed), questions(pictures, seed)
    for name, content in (("questions.json", asked), ("instructions.json", records)):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (output / name).write_text(text + "\n", encoding="utf-8")
    return len(records), len(asked)


def main() -> None:
    """Parse the arguments and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("data/demo/instructions"))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--validation-share", type=float, help="default: the recipe demo's")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records, asked = build(args.output, seed=args.seed, share=args.validation_share)
    logger.info("%s: %d conversations, %d held-out questions", args.output, records, asked)


if __name__ == "__main__":
    main()
