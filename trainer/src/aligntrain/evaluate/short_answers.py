"""Held-out questions with short answers, and a model's accuracy on them."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import InputError

if TYPE_CHECKING:
    from aligntrain.data.dataset import Row, ShardedDataset
    from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor

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
    path: Path, pictures: int | None = None, kinds: Sequence[str] | None = None
) -> list[ShortQuestion]:
    """Read the questions of the JSON file `path`: a list of records with `id`, `image` (a path from
    the file's folder), `question`, `answer` and, if there are several, `kind`.

    Limited to questions of `kinds`, and to `pictures` evenly spaced images; None for all.

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
    count = min(pictures or len(ids), len(ids))
    selected = {ids[number * len(ids) // count] for number in range(count)}
    return [q for q in questions if q.id in selected and (kinds is None or q.kind in kinds)]


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
    from aligntrain.inference.generate import Question, generate_answers

    # Sorted by length, as padding costs as much as text.
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].question))
    waiting = (Question(_messages(questions[i])) for i in order)
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
    count = min(len(held_out), MOST_ROWS)
    rows = [held_out[i * len(held_out) // count] for i in range(count)]
    return [question for row in rows for question in _of_row(shards.row(row))]


def holds_out(data: str, share: float) -> bool:
    """Return whether a recipe with this `data.validation_share` holds out any row of `data`."""
    return bool(_held_out_rows(data, share)[1])


def _held_out_rows(data: str, share: float) -> "tuple[ShardedDataset, list[int]]":
    from aligntrain.data.dataset import ShardedDataset
    from aligntrain.data.index import read_index

    shards = ShardedDataset(data, conversations=True)
    return shards, read_index(shards).validation_rows(share).tolist()


def _of_row(row: "Row") -> Iterator[ShortQuestion]:
    from aligntrain.data.dataset import decode_sample_image
    from aligntrain.evaluate.question_types import question_type
    from aligntrain.prompts.conversation import InvalidSample, read_conversation
    from aligntrain.prompts.placeholders import IMAGE_MARK

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


def _messages(question: ShortQuestion) -> list[dict[str, Any]]:
    from aligntrain.data.dataset import decode_sample_image
    from aligntrain.model.processing import read_image

    encoded = question.image
    image = decode_sample_image(encoded) if isinstance(encoded, bytes) else read_image(encoded)
    content = [{"type": "image", "image": image}, {"type": "text", "text": question.question}]
    return [{"role": "user", "content": content}]
