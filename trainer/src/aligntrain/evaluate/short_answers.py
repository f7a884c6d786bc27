"""Questions with short answers that no phase saw, and how many of them a model answers right."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignshared import InputError

SHORT_WORDS = 3
"""Words of a reference answer, at most, for which an exact match is asked."""

MOST_ROWS = 500
"""Rows of a dataset that are asked about, at most."""

LONGEST_ANSWER = 16
"""Tokens of an answer, at most."""

ALL = "all"
"""What the kinds of questions together are called."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A question of the type `kind` about `picture`, a file or encoded, and the `answer` that is
    expected.
    """

    id: str
    kind: str
    question: str
    answer: str
    picture: Path | bytes


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers to `asked` questions of a kind, and the share a constant answer would get."""

    asked: int
    right: int
    constant: float

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.asked


def is_right(said: str, expected: str) -> bool:
    """Whether `said` is `expected`, but for case and a full stop."""
    return _plain(said) == _plain(expected)


def _plain(answer: str) -> str:
    return answer.strip(" .\n").lower()


def is_short(reference: str | None) -> bool:
    """Whether an exact match with the answer `reference` can be asked for."""
    return reference is not None and 0 < len(reference.split()) <= SHORT_WORDS


def read_questions(
    path: Path, pictures: int | None = None, kinds: Sequence[str] | None = None
) -> list[HeldOut]:
    """The questions in the JSON file `path`: a list of records with `id`, `image` (a path from the
    file's folder), `question`, `answer` and, if there are several, `kind`. Those of `kinds` on so
    many of the pictures, spread over all of them; None for every one.

    Raises:
        InputError: there is no such file, or it is not of this kind.
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
    wanted = min(pictures or len(ids), len(ids))
    kept = {ids[number * len(ids) // wanted] for number in range(wanted)}
    return [q for q in questions if q.id in kept and (kinds is None or q.kind in kinds)]


def _question(record: dict[str, Any], folder: Path) -> HeldOut:
    image = Path(record["image"])
    if image.is_absolute() or ".." in image.parts:
        raise ValueError(f"the image {image} does not lie below the file's folder")
    return HeldOut(
        str(record["id"]),
        str(record.get("kind", "question")),
        str(record["question"]),
        str(record["answer"]),
        folder / image,
    )


def ask(
    model: Any,
    processor: Any,
    questions: Sequence[HeldOut],
    *,
    batch_size: int = 32,
    done: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """What the model says to each of `questions`, each by itself; `done` hears of every answer."""
    from aligntrain.inference.generate import Question, generate_answers

    # Of like length together, as padding costs as much as text.
    order = sorted(range(len(questions)), key=lambda at: len(questions[at].question))
    waiting = (Question(_messages(questions[at])) for at in order)
    said: dict[int, str] = {}
    answers = generate_answers(
        model, processor, waiting, max_new_tokens=LONGEST_ANSWER, batch_size=batch_size
    )
    for at, one in zip(order, answers, strict=True):
        said[at] = one.text
        done(1)
    return [said[at] for at in range(len(questions))]


def scores(questions: Sequence[HeldOut], said: Sequence[str]) -> dict[str, Score]:
    """How many answers are right, by kind of question."""
    right: Counter[str] = Counter()
    for question, text in zip(questions, said, strict=True):
        right[question.kind] += is_right(text, question.answer)
    return {
        kind: Score(count, right[kind], best / count)
        for kind, (count, best) in constant_answers(questions).items()
    }


def constant_answers(questions: Sequence[HeldOut]) -> dict[str, tuple[int, int]]:
    """By kind how many of `questions` there are, and how many of them the best constant answer gets
    right.
    """
    expected: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        expected[question.kind][_plain(question.answer)] += 1
    return {
        kind: (answers.total(), answers.most_common(1)[0][1]) for kind, answers in expected.items()
    }


def digest_of(questions: Sequence[HeldOut]) -> str:
    """A SHA-256 that is the same for the same `questions` in the same order; of pictures in files
    it knows the names.
    """
    digest = hashlib.sha256()
    for one in questions:
        picture = one.picture if isinstance(one.picture, bytes) else one.picture.name.encode()
        for part in (one.id, one.kind, one.question, one.answer):
            digest.update(part.encode() + b"\0")
        digest.update(hashlib.sha256(picture).digest())
    return digest.hexdigest()


def questions_of_rows(data: str, share: float) -> list[HeldOut]:
    """The questions with short answers in the rows of the dataset `data` that a recipe with the
    `data.validation_share` `share` keeps from training, typed as `aligntrain gate` does; of
    MOST_ROWS of them at most, at equal distances. Rows that cannot be used are left out.

    Of a conversation that is the first question alone: a later one may be none without what was
    said before it, such as the line that asks for a single word.
    """
    shards, held_out = _held_out_rows(data, share)
    count = min(len(held_out), MOST_ROWS)
    rows = [held_out[at * len(held_out) // count] for at in range(count)]
    return [question for row in rows for question in _of_row(shards.row(row))]


def holds_out(data: str, share: float) -> bool:
    """Whether such a recipe keeps any row of `data` from training."""
    return bool(_held_out_rows(data, share)[1])


def _held_out_rows(data: str, share: float) -> tuple[Any, list[int]]:
    from aligntrain.data.dataset import ShardedDataset
    from aligntrain.data.index import read_index

    shards = ShardedDataset(data, conversations=True)
    return shards, read_index(shards).validation_rows(share).tolist()


def _of_row(row: Any) -> Iterator[HeldOut]:
    from aligntrain.data.samples import decode_sample_image
    from aligntrain.evaluate.question_types import kind_of
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
        yield HeldOut(row.id, kind_of(question), question, first.answer, row.image)


def _messages(question: HeldOut) -> list[dict[str, Any]]:
    from aligntrain.data.samples import decode_sample_image
    from aligntrain.model.processing import read_image

    given = question.picture
    picture = decode_sample_image(given) if isinstance(given, bytes) else read_image(given)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question.question}]
    return [{"role": "user", "content": content}]
