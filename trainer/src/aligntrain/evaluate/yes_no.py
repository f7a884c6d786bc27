"""Yes or no: POPE and MME."""

from collections.abc import Sequence

from aligntrain.evaluate.score import Record, Score, grouped

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
"""MME's subtasks that make its perception score; the other four are cognition."""


def pope_reading(text: str) -> str:
    """`no` if the first sentence of `text` has the word, else `yes`, as POPE's own code reads."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def score_pope(records: Sequence[Record]) -> Score:
    """Mean over the splits of the F1 of `yes`; facts: `answer`, yes or no, and `split`."""
    read = [pope_reading(record["text"]) for record in records]
    told = [record["facts"]["answer"].strip().lower() for record in records]
    details: dict[str, float] = {}
    for (split,), places in grouped(records, "split").items():
        pairs = [(read[i], told[i]) for i in places]
        hits, yes, true = (
            sum(pair == ("yes", "yes") for pair in pairs),
            sum(said == "yes" for said, _ in pairs),
            sum(truth == "yes" for _, truth in pairs),
        )
        details |= {
            f"{split} F1": 200 * hits / (yes + true) if yes + true else 0.0,
            f"{split} accuracy": 100 * sum(said == truth for said, truth in pairs) / len(pairs),
            f"{split} precision": 100 * hits / yes if yes else 0.0,
            f"{split} recall": 100 * hits / true if true else 0.0,
            f"{split} yes": 100 * yes / len(pairs),
        }
    scores = [value for name, value in details.items() if name.endswith(" F1")]
    points = [float(said == truth) for said, truth in zip(read, told, strict=True)]
    return Score(sum(scores) / len(scores) if scores else None, points, details)


def mme_reading(text: str) -> str:
    """`yes`, `no` or `other`, as MME's own code reads: from the first four letters."""
    said = text.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "other")
    start = said[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score_mme(records: Sequence[Record]) -> Score:
    """Sum over the perception subtasks of accuracy and of pairs wholly right, each in percent.

    Each picture has two questions; facts: `category`, `picture`, `answer`. A picture of which one
    is missing makes no pair: it is left out, and a note says so.
    """
    points = [float(mme_reading(r["text"]) == mme_reading(r["facts"]["answer"])) for r in records]
    pairs: dict[str, list[float]] = {}
    missing = 0
    for (category, _), places in grouped(records, "category", "picture").items():
        if len(places) != 2:
            missing += 1
            continue
        right = sum(points[place] for place in places)
        pairs.setdefault(category, []).append(right * 50 + (right == 2) * 100)
    details = {category: sum(scores) / len(scores) for category, scores in pairs.items()}
    perception = [score for category, score in details.items() if category in PERCEPTION]
    cognition = [score for category, score in details.items() if category not in PERCEPTION]
    notes = [f"{missing} pictures lack a question and are left out"] if missing else []
    if cognition:
        details["cognition"] = sum(cognition)
    return Score(sum(perception) if perception else None, points, details, notes)
