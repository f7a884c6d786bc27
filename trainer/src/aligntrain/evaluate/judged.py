"""What a judge is asked of an answer, how its grade is read, and the score: LLaVA-Bench, MM-Vet.

A grade that cannot be read is no grade. A benchmark of which any is missing has no score.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from aligntrain.evaluate.score import Record, Score, grouped

Messages = list[dict[str, str]]
Grade = list[float]

_ANY_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."


@dataclass(frozen=True, slots=True)
class Judging:
    """How one benchmark is judged, with the settings of its own evaluation.

    A reply that `read` finds no grade in is asked for again `asked_again` times, each time at a
    higher temperature; then `read_last` is tried on the replies.
    """

    ask: Callable[[Record], Messages]
    read: Callable[[str], Grade | None]
    score: Callable[[Sequence[Record]], Score]
    temperature: float
    max_tokens: int
    asked_again: int = 0
    read_last: Callable[[str], Grade | None] | None = None


def _prompt(name: str) -> str:
    return (resources.files("aligntrain.evaluate") / "judge_prompts" / name).read_text(
        encoding="utf-8"
    )


def _ask_llava(record: Record) -> Messages:
    """The picture in words, the question, the reference answer first and the model's second."""
    facts = record["facts"]
    caption = facts["caption"]
    context = "\n".join(caption) if isinstance(caption, list) else caption
    answers = "".join(
        f"[Assistant {i}]\n{text}\n\n[End of Assistant {i}]\n\n"
        for i, text in ((1, facts["gpt_answer"]), (2, record["text"]))
    )
    asked = (
        f"[Context]\n{context}\n\n[Question]\n{facts['question']}\n\n{answers}"
        f"[System]\n{_prompt('llava-bench.txt')}\n\n"
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]


def read_pair(reply: str) -> Grade | None:
    """Two grades from 1 to 10 on the first line of `reply` and nothing beside them, else None."""
    words = reply.strip().split("\n", 1)[0].replace(",", " ").split()
    grades = [_number(word) for word in words]
    if len(grades) != 2 or not all(grade is not None and 1 <= grade <= 10 for grade in grades):
        return None
    return [grade for grade in grades if grade is not None]


def score_llava(records: Sequence[Record]) -> Score:
    """The model's grades in percent of the reference's; facts: `category`.

    100 · mean of the model's / mean of the reference's, over all questions and by category.
    """
    points = [record.get("grade") for record in records]
    notes = _missing(points)
    if notes or not points:
        return Score(None, points, notes=notes)
    details = {
        str(category): _ratio([points[i] for i in places])
        for (category,), places in grouped(records, "category").items()
    }
    return Score(_ratio(points), points, details)


def _ratio(grades: list[Any]) -> float:
    return 100 * sum(model for _, model in grades) / sum(reference for reference, _ in grades)


def _ask_mm_vet(record: Record) -> Messages:
    """The benchmark's graded examples and the answer as the line to complete."""
    facts = record["facts"]
    truth = facts["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    line = f"{facts['question']} | {truth} | {record['text']} |"
    return [{"role": "user", "content": f"{_prompt('mm-vet.txt')}\n{line}"}]


def read_correctness(reply: str) -> Grade | None:
    """The number from 0 to 1 that `reply` begins with, else None."""
    first = (reply.split() or [""])[0]
    grade = _number(first.rstrip(".") if first.count(".") > 1 else first)
    return [grade] if grade is not None and 0 <= grade <= 1 else None


def read_only_number(reply: str) -> Grade | None:
    """The number from 0 to 1 that is the only one on the first line of `reply`, else None."""
    numbers = _ANY_NUMBER.findall(reply.strip().split("\n", 1)[0])
    return read_correctness(numbers[0]) if len(numbers) == 1 else None


def score_mm_vet(records: Sequence[Record]) -> Score:
    """Mean correctness in percent, and of the questions that need each capability."""
    points = [record.get("grade") for record in records]
    notes = _missing(points)
    if notes or not points:
        return Score(None, points, notes=notes)
    grades = [float(point[0]) for point in points if point]
    by_capability: dict[str, list[float]] = {}
    for record, grade in zip(records, grades, strict=True):
        for capability in record["facts"]["capability"].split(","):
            by_capability.setdefault(capability.strip(), []).append(grade)
    details = {name: 100 * sum(some) / len(some) for name, some in by_capability.items()}
    return Score(100 * sum(grades) / len(grades), points, details)


def _missing(points: list[Any]) -> list[str]:
    given = sum(point is not None for point in points)
    return [] if given == len(points) else [f"{given} of {len(points)} answers judged"]


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


JUDGED = {
    "llava-bench": Judging(_ask_llava, read_pair, score_llava, temperature=0.2, max_tokens=1024),
    "mm-vet": Judging(
        _ask_mm_vet,
        read_correctness,
        score_mm_vet,
        temperature=0.0,
        max_tokens=128,
        asked_again=3,
        read_last=read_only_number,
    ),
}
