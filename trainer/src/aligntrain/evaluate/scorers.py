"""Scorers: VQA accuracy, exact match, multiple choice, and the yes-or-no questions of POPE and MME.

VQA accuracy is that of Antol et al., arXiv 1505.00468, as the VQA server's evaluation code computes
it: answers of both sides are normalised first. Its tables, slips included, are those of the server,
as scores are compared with the server's.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, TypeVar

Record = Mapping[str, Any]
"""Answered question: the answer `text`, and `facts` of the data for its scorer."""


class Term(NamedTuple):
    """What a record adds to the sums above and below the line of a `part` of the score."""

    part: str
    numerator: float
    denominator: float


@dataclass(frozen=True, slots=True)
class Score:
    """A benchmark's score.

    `value` is the headline in the paper's unit, None if there is none; `points` are the records'
    own scores, None for unscored ones; `details` are further named numbers; `notes` are sentences
    about missing records. `made_of` says how the records make the headline, None for those left
    out: the sum over the parts, times `weights`, of the ratios of their sums. Without it, it is the
    mean of the points in percent. `top` is the highest possible value, None if there is none.
    """

    value: float | None
    points: list[Any]
    details: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])
    made_of: Sequence[Term | None] | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: {"": 100.0})
    top: float | None = 100.0

    @property
    def terms(self) -> Sequence[Term | None]:
        """Terms of the records, in their order; only of a score with a value."""
        if self.made_of is not None:
            return self.made_of
        return [None if point is None else Term("", point, 1.0) for point in self.points]


Scorer = Callable[[Sequence[Record]], Score]
K = TypeVar("K")
V = TypeVar("V")


def percent(points: Iterable[float]) -> float | None:
    """Return the mean of `points` in percent, None if there are none."""
    given = list(points)
    return 100 * sum(given) / len(given) if given else None


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """Return the second items of `pairs` by the first, in order of appearance."""
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def percents(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean in percent of the points of each name in `pairs`."""
    return {name: 100 * sum(some) / len(some) for name, some in grouped(pairs).items()}


def score_unknown(records: Sequence[Record]) -> Score:
    """Score nothing: the answers are not public."""
    return Score(None, [None] * len(records), notes=["its server alone knows the answers"])


def _mean(points_of: Callable[[Record], float], kind: str | None = None) -> Scorer:
    """Return the scorer of the mean of `points_of` in percent, over all and by the fact `kind`."""

    def score(records: Sequence[Record]) -> Score:
        points = [float(points_of(record)) for record in records]
        kinds = [str(record["facts"][kind]) for record in records] if kind else []
        return Score(percent(points), points, percents(zip(kinds, points, strict=False)))

    return score


_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_MOST_PERIODS = 32
"""Maximum full stops removed: the server's code passes a flag in place of the count."""

_WRITTEN = """
'ow's'at 'twas I'd've I'm I've ain't aren't can't could've couldn't couldn't've didn't doesn't don't
hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - a list literal is four times as long
_NOT_MENDED = {"ow'sat", "'owsat", "ows'at", "yall'dve", "y'alldve", "yalld've"}


def _contractions() -> dict[str, str]:
    """Map contractions that lack some apostrophes, but not all of several, to their spelling."""
    mended = {"somebody'd": "somebodyd"}
    for written in _WRITTEN:
        first, *others = written.split("'")
        for marks in product(("", "'"), repeat=len(others)):
            seen = first + "".join(m + o for m, o in zip(marks, others, strict=True))
            kept = sum(map(len, marks))
            if kept < len(others) and (kept or len(others) == 1) and seen not in _NOT_MENDED:
                mended[seen] = written
    return mended


_CONTRACTIONS = _contractions()


def normal_answer(answer: str) -> str:
    """Normalise `answer` as the VQA server does: lower case, no articles, little punctuation,
    numbers to ten as digits, contractions with their apostrophes.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or has_number else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def vqa_accuracy(answer: str, humans: list[str]) -> float:
    """Return the agreement, 0 to 1, of `answer` with the (usually ten) `humans`.

    Each human is left out in turn; three matches among the others are full agreement. Of ten, 1,
    2, 3 and 4 matches make 0.3, 0.6, 0.9 and 1.
    """
    if not humans:
        return 0.0
    normal = normal_answer(answer)
    matches = [normal_answer(human) == normal for human in humans]
    total = sum(matches)
    return sum(min((total - match) / 3, 1) for match in matches) / len(matches)


score_vqa = _mean(lambda record: vqa_accuracy(record["text"], record["facts"]["answers"]))
"""Score mean VQA accuracy in percent; facts: `answers` of people."""

score_exact = _mean(
    lambda record: record["text"].strip().rstrip(".").lower() == record["facts"]["answer"].lower()
)
"""Score answers that match, ignoring case and a full stop; facts: `answer`."""


_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z])\.")
_LETTER = re.compile(r"\(?([A-Z])[.):]?|\(?([A-Z])[.):]\s.*", re.DOTALL)


def _science_letter(text: str) -> str | None:
    if text in set("ABCDE"):
        return text
    if text[:1] in set("ABCDE") and text[1:3] == ". ":
        return text[0]
    letters = _THE_ANSWER_IS.findall(text)
    return letters[0] if len(letters) == 1 else None


score_science = _mean(lambda record: _science_letter(record["text"]) == record["facts"]["answer"])
"""Score right letters; facts: `answer`, a letter.

As in LLaVA's evaluation, a letter stands alone, as `B. …` or in `The answer is B.`; anything else
is wrong.
"""

score_letter = _mean(lambda record: record["text"] == record["facts"]["answer"], kind="kind")
"""Score answers that are exactly the right letter; facts: `answer`, `kind`."""


def chosen_letter(text: str, options: dict[str, str]) -> str | None:
    """Return the letter of the option named by `text`, or None.

    By letter (`B`, `(B)`, `B. a dog`, `The answer is B.`) or by the whole text of an option. `A
    dog` names none: its A is an article.
    """
    answer = text.strip()
    match = _LETTER.fullmatch(answer) or _THE_ANSWER_IS.search(answer)
    if match:
        letter = next(group for group in match.groups() if group)
        return letter if letter in options else None
    same = [letter for letter, option in options.items() if _plain(option) == _plain(answer)]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


ROTATION = 1_000_000
"""Rotations of MMBench's question `index` are numbered `index` plus multiples of this."""


def score_circular(records: Sequence[Record]) -> Score:
    """Score questions that are right in every rotation of their options.

    Facts: `index`, `options` by letter, `answer`, `kind`. There may be fewer rotations than
    options: 53 questions of the dev file have four options and three rotations. A question with a
    gap in the numbers of its rotations lacks one; it is left out, with a note.
    """
    facts = [record["facts"] for record in records]
    letters = [chosen_letter(r["text"], r["facts"]["options"]) for r in records]
    right = [float(letter == f["answer"]) for letter, f in zip(letters, facts, strict=True)]
    questions = grouped((f["index"] % ROTATION, place) for place, f in enumerate(facts))
    whole: list[tuple[str, float]] = []
    terms: list[Term | None] = [None] * len(records)
    for places in questions.values():
        if {facts[place]["index"] // ROTATION for place in places} == set(range(len(places))):
            point = float(all(right[place] for place in places))
            whole.append((str(facts[places[0]]["kind"]), point))
            terms[places[0]] = Term("", point, 1.0)
    details = percents(whole)
    details["each rotation for itself"] = percent(right) or 0.0
    missing = len(questions) - len(whole)
    notes = [f"{missing} questions lack a rotation and are left out"] if missing else []
    return Score(percent(point for _, point in whole), right, details, notes, terms)


PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
"""MME's subtasks of the perception score; the other four are cognition."""


def pope_reading(text: str) -> str:
    """Return `no` if the first sentence of `text` has a "no" or "not", else `yes`, as POPE does."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def score_pope(records: Sequence[Record]) -> Score:
    """Score the mean F1 of `yes` over the splits; facts: `answer`, yes or no, and `split`."""
    read = [pope_reading(record["text"]) for record in records]
    truths = [record["facts"]["answer"].strip().lower() for record in records]
    splits = [record["facts"]["split"] for record in records]
    details: dict[str, float] = {}
    answers = zip(read, truths, strict=True)
    for split, pairs in grouped(zip(splits, answers, strict=True)).items():
        hits, yes, true = (
            sum(pair == ("yes", "yes") for pair in pairs),
            sum(reply == "yes" for reply, _ in pairs),
            sum(truth == "yes" for _, truth in pairs),
        )
        details |= {
            f"{split} F1": 200 * hits / (yes + true) if yes + true else 0.0,
            f"{split} accuracy": 100 * sum(reply == truth for reply, truth in pairs) / len(pairs),
            f"{split} precision": 100 * hits / yes if yes else 0.0,
            f"{split} recall": 100 * hits / true if true else 0.0,
            f"{split} yes": 100 * yes / len(pairs),
        }
    scores = [value for name, value in details.items() if name.endswith(" F1")]
    points = [float(reply == truth) for reply, truth in zip(read, truths, strict=True)]
    # F1 = 2 hits / (said yes + is yes)
    terms: list[Term | None] = [
        Term(split, 2.0 * (reply == truth == "yes"), (reply == "yes") + (truth == "yes"))
        for split, reply, truth in zip(splits, read, truths, strict=True)
    ]
    weights = dict.fromkeys(splits, 100 / max(1, len(scores)))
    value = sum(scores) / len(scores) if scores else None
    return Score(value, points, details, made_of=terms, weights=weights)


def mme_reading(text: str) -> str:
    """Return `yes`, `no` or `other` by the first four letters, as MME's own code does."""
    said = text.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "other")
    start = said[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score_mme(records: Sequence[Record]) -> Score:
    """Score the sum over perception subtasks of accuracy and of fully right pairs, in percent.

    Each image has two questions; facts: `category`, `picture`, `answer`. Incomplete images are
    left out, with a note.
    """
    points = [float(mme_reading(r["text"]) == mme_reading(r["facts"]["answer"])) for r in records]
    images = [(record["facts"]["category"], record["facts"]["picture"]) for record in records]
    by_image = grouped(zip(images, points, strict=True))
    pairs = {image: sum(both) for image, both in by_image.items() if len(both) == 2}
    by_category = grouped(
        (image[0], 50 * right + 100 * (right == 2)) for image, right in pairs.items()
    )
    details = {category: sum(scores) / len(scores) for category, scores in by_category.items()}
    perception = [score for category, score in details.items() if category in PERCEPTION]
    cognition = [score for category, score in details.items() if category not in PERCEPTION]
    missing = len(by_image) - len(pairs)
    notes = [f"{missing} images lack a question and are left out"] if missing else []
    if cognition:
        details["cognition"] = sum(cognition)
    # Each question has half of its image's points: 25 for a right one, 50 more if both are right.
    terms = [
        Term(image[0], 25 * pairs[image] + 50 * (pairs[image] == 2), 0.5)
        if image in pairs
        else None
        for image in images
    ]
    weights = {category: float(category in PERCEPTION) for category in by_category}
    value = sum(perception) if perception else None
    return Score(value, points, details, notes, terms, weights, top=200.0 * len(perception))
