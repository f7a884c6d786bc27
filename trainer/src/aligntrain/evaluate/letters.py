"""Multiple choice by letters: ScienceQA, SEED-Bench, MMBench."""

import re
from collections.abc import Sequence

from aligntrain.evaluate.score import Record, Score, grouped, percent

_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z])\.")
_LETTER = re.compile(r"\(?([A-Z])[.):]?|\(?([A-Z])[.):]\s.*", re.DOTALL)


def score_science(records: Sequence[Record]) -> Score:
    """Share of right letters; facts: `answer`, a letter, and `options`, their number.

    A letter is given alone, as `B. …` or by `The answer is B.`, as LLaVA's evaluation reads it; one
    that is no option, and anything else, is wrong.
    """
    points = [float(_science_letter(r["text"]) == r["facts"]["answer"]) for r in records]
    return Score(percent(points), points)


def _science_letter(text: str) -> str | None:
    if text in set("ABCDE"):
        return text
    if text[:1] in set("ABCDE") and text[1:3] == ". ":
        return text[0]
    found = _THE_ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else None


def score_letter(records: Sequence[Record]) -> Score:
    """Share of answers that are the right letter and nothing else; facts: `answer`, `kind`."""
    points = [float(record["text"] == record["facts"]["answer"]) for record in records]
    kinds = grouped(records, "kind")
    details = {str(kind): percent(points[i] for i in places) for (kind,), places in kinds.items()}
    return Score(percent(points), points, {k: v for k, v in details.items() if v is not None})


def chosen_letter(text: str, options: dict[str, str]) -> str | None:
    """The letter of the one of `options` that `text` names; None where it names none.

    By letter (`B`, `(B)`, `B. a dog`, `The answer is B.`) or by the whole text of an option. `A
    dog` names none: its A is an article.
    """
    said = text.strip()
    match = _LETTER.fullmatch(said) or _THE_ANSWER_IS.search(said)
    if match:
        letter = next(group for group in match.groups() if group)
        return letter if letter in options else None
    same = [letter for letter, option in options.items() if _plain(option) == _plain(said)]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


ROTATION = 1_000_000
"""Rotations of MMBench's question `index` are numbered `index` + 1, 2, … times this."""


def score_circular(records: Sequence[Record]) -> Score:
    """Share of questions that are right in every rotation of their options.

    Facts: `index`, `options` by letter, `answer`, `kind`. There may be fewer rotations than
    options: 53 questions of the dev file have four and three. A question whose rotations are not
    numbered without a gap has lost one; it can be neither right in every one nor wrong for it, and
    so is left out, with a note.
    """
    right = [
        float(
            chosen_letter(record["text"], record["facts"]["options"]) == record["facts"]["answer"]
        )
        for record in records
    ]
    whole: list[float] = []
    kinds: dict[str, list[float]] = {}
    questions: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        questions.setdefault(record["facts"]["index"] % ROTATION, []).append(place)
    for places in questions.values():
        turns = sorted(records[place]["facts"]["index"] // ROTATION for place in places)
        if turns == list(range(len(turns))):
            whole.append(float(all(right[place] for place in places)))
            kind = str(records[places[0]]["facts"]["kind"])
            kinds.setdefault(kind, []).append(whole[-1])
    details = {kind: 100 * sum(points) / len(points) for kind, points in kinds.items()}
    details["each rotation for itself"] = percent(right) or 0.0
    missing = len(questions) - len(whole)
    notes = [f"{missing} questions lack a rotation and are left out"] if missing else []
    return Score(percent(whole), right, details, notes)
