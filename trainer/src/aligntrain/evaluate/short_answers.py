"""Held-out questions with short answers, their types, and a model's accuracy on them."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from alignshared import InputError
from aligntrain.data.dataset import Row, ShardedDataset, decode_sample_image
from aligntrain.data.index import read_index
from aligntrain.prompts.conversation import InvalidSample, read_conversation
from aligntrain.prompts.placeholders import IMAGE_MARK

if TYPE_CHECKING:
    from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor

T = TypeVar("T")

SHORT_WORDS = 3
"""Maximum words of a reference answer compared by exact match."""

MOST_ROWS = 500
"""Maximum dataset rows used for questions."""

LONGEST_ANSWER = 16
"""Maximum tokens of an answer."""

ALL = "all"
"""Name for the questions of all kinds together."""


@dataclass(frozen=True, slots=True)
class ShortQuestion:
    """A question of type `kind` about `image`, a file or encoded, with its reference `answer`."""

    id: str
    kind: str
    question: str
    answer: str
    image: Path | bytes


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers to `asked` questions of a kind, and the accuracy of a constant answer."""

    asked: int
    right: int
    constant: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.asked


def is_right(answer: str, expected: str) -> bool:
    """Return whether `answer` equals `expected`, ignoring case and a full stop."""
    return _plain(answer) == _plain(expected)


def _plain(answer: str) -> str:
    return answer.strip(" .\n").lower()


def is_short(reference: str | None) -> bool:
    """Return whether `reference` is short enough for an exact match."""
    return reference is not None and 0 < len(reference.split()) <= SHORT_WORDS


def read_questions(
    path: Path, images: int | None = None, kinds: Sequence[str] | None = None
) -> list[ShortQuestion]:
    """Read the questions of the JSON file `path`: a list of records with `id`, `image` (a path from
    the file's folder), `question`, `answer` and, if there are several, `kind`.

    Limited to questions of `kinds`, and to `images` evenly spaced images; None for all.

    Raises:
        InputError: the file is missing or malformed.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        questions = [_question(record, path.parent) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as questions ({error!r}); give a JSON list of records with id, "
            "image, question and answer."
        ) from error
    ids = list(dict.fromkeys(question.id for question in questions))
    selected = set(evenly(ids, images or len(ids)))
    return [q for q in questions if q.id in selected and (kinds is None or q.kind in kinds)]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of `items` at equal distances, or all if there are fewer."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _question(record: dict[str, Any], folder: Path) -> ShortQuestion:
    image = Path(record["image"])
    if image.is_absolute() or ".." in image.parts:
        raise ValueError(f"the image {image} does not lie below the file's folder")
    return ShortQuestion(
        str(record["id"]),
        str(record.get("kind", "question")),
        str(record["question"]),
        str(record["answer"]),
        folder / image,
    )


def ask(
    model: "AlignGPTForConditionalGeneration",
    processor: "AlignGPTProcessor",
    questions: Sequence[ShortQuestion],
    *,
    batch_size: int = 32,
    done: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Return the model's answer to each of `questions`; `done` is called with 1 after each."""
    from aligntrain.inference.generate import Question, generate_answers, messages_of
    from aligntrain.model.processing import read_image

    def prompt(question: ShortQuestion) -> Question:
        image = question.image
        read = decode_sample_image(image) if isinstance(image, bytes) else read_image(image)
        return Question(messages_of(question.question, [read]))

    # Sorted by length, as padding costs as much as text.
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].question))
    waiting = (prompt(questions[i]) for i in order)
    texts: dict[int, str] = {}
    answers = generate_answers(
        model, processor, waiting, max_new_tokens=LONGEST_ANSWER, batch_size=batch_size
    )
    for index, answer in zip(order, answers, strict=True):
        texts[index] = answer.text
        done(1)
    return [texts[index] for index in range(len(questions))]


def scores(questions: Sequence[ShortQuestion], answers: Sequence[str]) -> dict[str, Score]:
    """Score `answers` by kind of question."""
    right: Counter[str] = Counter()
    for question, text in zip(questions, answers, strict=True):
        right[question.kind] += is_right(text, question.answer)
    return {
        kind: Score(count, right[kind], best / count)
        for kind, (count, best) in constant_answers(questions).items()
    }


def constant_answers(questions: Sequence[ShortQuestion]) -> dict[str, tuple[int, int]]:
    """Return by kind the count of `questions` and the right answers of the best constant answer."""
    expected: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        expected[question.kind][_plain(question.answer)] += 1
    return {
        kind: (answers.total(), answers.most_common(1)[0][1]) for kind, answers in expected.items()
    }


def digest_of(questions: Sequence[ShortQuestion]) -> str:
    """Return a SHA-256 of `questions` in their order; image files count by their names."""
    digest = hashlib.sha256()
    for question in questions:
        image = question.image
        image = image if isinstance(image, bytes) else image.name.encode()
        for part in (question.id, question.kind, question.question, question.answer):
            digest.update(part.encode() + b"\0")
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()


def questions_of_rows(data: str, share: float) -> list[ShortQuestion]:
    """Return the questions with short answers from the rows of `data` that a recipe with the
    `data.validation_share` `share` holds out, of at most MOST_ROWS rows at equal distances, typed
    as in `aligntrain gate`. Invalid rows are left out.

    Only a conversation's first question is used: later ones may depend on earlier turns, such as a
    request for a single word.
    """
    shards, held_out = _held_out_rows(data, share)
    return [q for row in evenly(held_out, MOST_ROWS) for q in _of_row(shards.row(row))]


def holds_out(data: str, share: float) -> bool:
    """Return whether a recipe with this `data.validation_share` holds out any row of `data`."""
    return bool(_held_out_rows(data, share)[1])


def _held_out_rows(data: str, share: float) -> tuple[ShardedDataset, list[int]]:
    shards = ShardedDataset(data, conversations=True)
    return shards, read_index(shards).validation_rows(share).tolist()


def _of_row(row: Row) -> Iterator[ShortQuestion]:
    if not row.image:
        return
    try:
        first = read_conversation(row.turns, 1).exchanges[0]
        decode_sample_image(row.image)
    except InvalidSample:
        return
    question = first.question.replace(IMAGE_MARK, "").strip()
    if is_short(first.answer):
        yield ShortQuestion(row.id, question_type(question), question, first.answer, row.image)


_TYPES = (
    ("multiple choice", r"(?m)^\W*[a-d][.):] .*\n\W*[b-e][.):] "),
    (
        "yes or no",
        r"^(is|are|was|were|am|be|isn't|aren't|do|does|did|don't|doesn't|has|have|had|can|could|"
        r"will|would|should|may|might)\b",
    ),
    ("how many", r"\bhow (many|much)\b|^count\b"),
    ("which", r"^(in |on |at |from )?which\b|^what (kind|type|sort|group)\b"),
    ("colour", r"\bwhat (is the )?colou?rs?\b"),
    ("where", r"^where\b|\bbounding box\b|\bwhat region\b"),
    ("who", r"^(who|whose|whom)\b"),
    ("why or how", r"^(why|how)\b"),
    ("what", r"^what('s)?\b"),
    ("describe", r"\bdescri(be|ption)\b|\bcaption\b|\bsummari[sz]e\b|\btell me about\b|^write a\b"),
)
"""Types of questions with their patterns; the first that matches decides."""


def question_type(question: str) -> str:
    """Return the type of `question` by its words, for data without a column of types:

    multiple choice   lines that begin with a letter and a full stop, bracket or colon
    yes or no         begins with a form of be, do, have or can, or with will, would, should, may
    how many          "how many", "how much" or "count"
    which             begins with "which", or asks what kind, type, sort or group
    colour            "what colour", "what color"
    where             begins with "where", or asks for a bounding box or a region
    who               begins with who, whose, whom
    why or how        begins with why or how
    what              begins with what
    describe          "describe", "caption", "summarize", "tell me about", "write a"
    other             any other
    """
    words = question.strip().lower()
    return next((name for name, pattern in _TYPES if re.search(pattern, words)), "other")
