"""Conversations: the turns of a row, checked, with image marks in their places.

A row that cannot become a sample raises `InvalidSample` with its `Reason`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from aligntrain.prompts.placeholders import IMAGE_MARK


class Reason(StrEnum):
    """Reasons for rejecting a row, as counted and logged."""

    NO_CAPTION = "no_caption"
    NO_IMAGE = "no_image"
    NO_CONVERSATION = "no_conversation"
    MALFORMED_CONVERSATION = "malformed_conversation"
    IMAGE_MARKS = "image_marks"
    CHAT_TEMPLATE = "chat_template"
    FOREIGN_TOKEN = "foreign_token"
    TOO_LONG = "too_long"
    CORRUPT_IMAGE = "corrupt_image"


class InvalidSample(Exception):
    """Row that cannot become a sample: the reason, and a detail for the reader."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Roles by speaker, in LLaVA's names and transformers'."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Text of one `speaker`: `human` or `gpt` in LLaVA's files."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """Question and its answer, which the model learns."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Optional system message and at least one exchange."""

    system: str | None
    exchanges: tuple[Exchange, ...]


def read_conversation(turns: Sequence[Turn], images: int) -> Conversation:
    """Return the `turns` of a row with `images` images as a conversation.

    As in LLaVA's code (`preprocess_multimodal`), an image mark moves to the front of its question,
    on a line of its own. With one image, any number of marks in one question mean that image, and a
    row without a mark shows the image in the first question; in a row without images a mark is
    plain text. An answer that opens the conversation is dropped, as is a question at the end
    without an answer.

    Raises:
        InvalidSample: speakers are unknown or do not alternate, a turn is empty, or marks and
            images differ in number.
    """
    has_system = bool(turns) and _role(turns[0]) == "system"
    system, rest = (turns[0].text, turns[1:]) if has_system else (None, turns)
    if rest and _role(rest[0]) == "assistant":
        rest = rest[1:]
    pairs = list(zip(rest[::2], rest[1::2], strict=False))
    if not pairs:
        raise InvalidSample(Reason.NO_CONVERSATION, "there is no question with an answer")
    for question, answer in pairs:
        if (_role(question), _role(answer)) != ("user", "assistant"):
            raise InvalidSample(
                Reason.MALFORMED_CONVERSATION,
                f"{question.speaker!r} is followed by {answer.speaker!r}",
            )
    questions = _place_images([question.text for question, _ in pairs], images)
    answers = [answer.text for _, answer in pairs]
    for number, text in enumerate(t for pair in zip(questions, answers, strict=True) for t in pair):
        if not text.strip():
            raise InvalidSample(Reason.MALFORMED_CONVERSATION, f"turn {number + 1} is empty")
    return Conversation(system, tuple(map(Exchange, questions, answers)))


def _role(turn: Turn) -> str:
    if turn.speaker not in _ROLES:
        raise InvalidSample(
            Reason.MALFORMED_CONVERSATION, f"the speaker {turn.speaker!r} is unknown"
        )
    return _ROLES[turn.speaker]


def _place_images(questions: list[str], images: int) -> list[str]:
    if images == 0:
        return questions
    marks = [question.count(IMAGE_MARK) for question in questions]
    if not any(marks):
        marks[0] = images
    elif images == 1 and sum(mark > 0 for mark in marks) == 1:
        marks = [min(mark, 1) for mark in marks]
    if sum(marks) != images:
        raise InvalidSample(
            Reason.IMAGE_MARKS,
            f"{sum(marks)} marks {IMAGE_MARK} for {images} images in the questions",
        )
    return [
        (f"{IMAGE_MARK}\n" * mark + question.replace(IMAGE_MARK, "").strip()).strip()
        if mark
        else question
        for question, mark in zip(questions, marks, strict=True)
    ]
