"""Make instruction data of the demo's drawings from Unicode's labels, groups and tags.

uv run python pipelines/demo_data/build_instructions.py --output data/demo/instructions

Writes LLaVA's instruction JSON and its images:

    instructions.json   two conversations on each drawing of the pairs and of further concepts, for
                        `aligncurate ingest`
    questions.json      questions, with their answers, about the held-out images
    images/ID.png

The name is asked of concepts whose drawings by other vendors were trained on; the group, and
whether it is this or that, of concepts that nothing was trained on.
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

import pyarrow.parquet as pq
from captions import group_name, with_article
from concepts import Concept
from conversations import ASKING, GROUPING, NAMING, conversations

from alignshared.demo import further_path, held_out_path, pairs_path

logger = logging.getLogger("build_instructions")

SEED = 0


@dataclass(frozen=True)
class Drawing:
    """A drawing of the demo and what it shows."""

    id: str
    concept: Concept
    png: bytes

    @property
    def file(self) -> str:
        """Path of its PNG in the output folder."""
        return f"images/{self.id}.png"


def read_drawings(path: Path) -> list[Drawing]:
    """Return the drawings of one of the demo's files, each once, in its order."""
    drawings: dict[str, Drawing] = {}
    for row in pq.read_table(path).to_pylist():
        key = Path(row["image"]["path"]).stem
        concept = Concept(
            key, row["concept"], row["group"], row["subgroup"], tuple(row["tags"]), ()
        )
        drawing = Drawing(f"{row['vendor']}-{key}", concept, row["image"]["bytes"])
        drawings.setdefault(drawing.id, drawing)
    return list(drawings.values())


def decoys(drawings: Sequence[Drawing], rng: random.Random) -> list[Drawing]:
    """For each drawing one of another group; each serves once, so that no name alone tells a no.

    Raises:
        ValueError: more than half of the drawings are of one group.
    """
    largest = max(Counter(drawing.concept.group for drawing in drawings).values())
    if 2 * largest > len(drawings):
        raise ValueError("more than half of the drawings are of one group.")
    drawn = rng.sample(drawings, len(drawings))
    while clashing := [
        at for at, (own, other) in enumerate(zip(drawings, drawn, strict=True))
        if own.concept.group == other.concept.group
    ]:  # fmt: skip
        for at in clashing:
            other = rng.randrange(len(drawn))
            drawn[at], drawn[other] = drawn[other], drawn[at]
    return drawn


def instructions(
    paired: Sequence[Drawing], further: Sequence[Drawing], seed: int, *, single_turn: bool = False
) -> list[dict[str, Any]]:
    """Records of LLaVA's format in random order: two a drawing, or if `single_turn` one a question.

    The name is asked of those of the pairs alone: two drawings are too few to learn one from.
    """
    rng = random.Random(f"instructions:{seed}")
    records: list[dict[str, Any]] = []
    drawings = [*paired, *further]
    named = [True] * len(paired) + [False] * len(further)
    for drawing, decoy, name in zip(drawings, decoys(drawings, rng), named, strict=True):
        two = conversations(drawing.concept, decoy.concept, rng, named=name)
        for exchanges in ([one] for each in two for one in each) if single_turn else two:
            turns: list[dict[str, str]] = []
            for number, (question, answer) in enumerate(exchanges):
                mark = "<image>\n" if number == 0 else ""
                turns.append({"from": "human", "value": mark + question})
                turns.append({"from": "gpt", "value": answer})
            records.append({"id": drawing.id, "image": drawing.file, "conversations": turns})
    rng.shuffle(records)
    return records


def questions(
    known: Sequence[Drawing], unseen: Sequence[Drawing], seed: int
) -> list[dict[str, Any]]:
    """Records of what to ask about the held-out drawings, with `kind` and `answer`.

    A `name` is asked of the `known` ones; the `group`, and whether one `is_this` (as often yes as
    no), of the `unseen`.
    """
    rng = random.Random(f"questions:{seed}")
    asked = [(drawing, "name", NAMING[0], with_article(drawing.concept.label)) for drawing in known]
    for drawing, decoy in zip(unseen, decoys(unseen, rng), strict=True):
        right, wrong = (ASKING.format(with_article(d.concept.label)) for d in (drawing, decoy))
        asked += [
            (drawing, "is_this", right, "Yes"),
            (drawing, "is_this", wrong, "No"),
            (drawing, "group", GROUPING[0], group_name(drawing.concept)),
        ]
    return [
        {
            "id": drawing.id,
            "image": drawing.file,
            "kind": kind,
            "question": question,
            "answer": answer,
        }
        for drawing, kind, question, answer in asked
    ]


def build(output: Path, *, seed: int = SEED, single_turn: bool = False) -> tuple[int, int]:
    """Write everything into the folder `output`; the JSON files last.

    With `single_turn`, each question is a conversation of its own.

    Returns:
        The numbers of records and of questions.
    """
    paired, held_out = read_drawings(pairs_path()), read_drawings(held_out_path())
    further = read_drawings(further_path())
    trained_on = {drawing.concept.key for drawing in paired}
    known = [drawing for drawing in held_out if drawing.concept.key in trained_on]
    unseen = [drawing for drawing in held_out if drawing.concept.key not in trained_on]
    (output / "images").mkdir(parents=True, exist_ok=True)
    for drawing in (*paired, *further, *held_out):
        (output / drawing.file).write_bytes(drawing.png)
    records = instructions(paired, further, seed, single_turn=single_turn)
    asked = questions(known, unseen, seed)
    for name, content in (("questions.json", asked), ("instructions.json", records)):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (output / name).write_text(text + "\n", encoding="utf-8")
    return len(records), len(asked)


def main() -> None:
    """Parse the arguments and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("data/demo/instructions"))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--single-turn", action="store_true", help="make each question a conversation of its own"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records, asked = build(args.output, seed=args.seed, single_turn=args.single_turn)
    logger.info("%s: %d conversations, %d held-out questions", args.output, records, asked)


if __name__ == "__main__":
    main()
