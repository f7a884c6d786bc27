"""Questions of a dataset about images, with their types.

Each question of a conversation is asked by itself, without the turns before it, so that questions
of one type are alike. The caption of a pair without a conversation takes the place of a question.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignshared import InputError
from alignshared.schema import LEVEL_COLUMN
from aligntrain.data.dataset import ShardedDataset
from aligntrain.evaluate.short_answers import question_type
from aligntrain.prompts.conversation import InvalidSample, Turn, read_conversation
from aligntrain.prompts.placeholders import IMAGE_MARK

TYPE_COLUMNS = ("question_type", "type", "task", "kind", "category", "source", "dataset")
"""Columns that may hold the type of a question; the first one present is used."""

FIRST_WORDS = "first words"
"""Source of types without a column: see `question_type`."""

_SCORE = "score"


@dataclass(frozen=True, slots=True)
class GateQuestion:
    """Question about the image of row `row`; `turn` counts those of a conversation from 0.

    `answer` is the reference, None for a pair, whose `question` is its caption. `score` and `level`
    are the row's, or None.
    """

    row: int
    id: str
    turn: int
    kind: str
    question: str
    answer: str | None
    system: str | None
    score: float | None
    level: int | None


@dataclass(frozen=True, slots=True)
class GateQuestions:
    """Questions in the order of the rows; captions if `pairs`.

    `types_from` is the column of the types, or FIRST_WORDS; `rows` counts the dataset's rows,
    `text_only` those without an image, `unusable` the selected but unreadable ones.
    """

    questions: list[GateQuestion]
    pairs: bool
    types_from: str
    rows: int
    text_only: int
    unusable: int


def read_gate_questions(
    shards: ShardedDataset, *, by: str | None = None, limit: int | None = None, system: bool = True
) -> GateQuestions:
    """Read at most `limit` questions of `shards`, with types from the column `by`.

    With a limit, evenly spaced rows contribute as few questions as possible each, in
    turn its first, its second and so on, which covers many images and all turns. Without `system`,
    the rows' system messages are dropped. Without `by`, types come from the first of TYPE_COLUMNS
    that is present, else from the levels of pairs, else from the question's first words.

    Raises:
        InputError: there is no such column, or no row has an image and a question.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1 (got {limit}).")
    column = _type_column(shards, by)
    with_image = np.concatenate(
        [
            first + np.flatnonzero(batch.column("image").is_valid().to_numpy(zero_copy_only=False))
            for first, _, batch in shards.iter_batches(["image.path"])
        ]
    )
    chosen, each = with_image, None
    if limit is not None:
        rows = min(limit, len(with_image))
        chosen = with_image[np.arange(rows) * len(with_image) // max(rows, 1)]
        each = limit // max(rows, 1)
    questions: list[GateQuestion] = []
    unusable, pairs = 0, True
    for place, (number, row) in enumerate(_rows(shards, chosen, column)):
        pairs = pairs and not row.get("conversations")
        try:
            of_row = list(_of_row(number, row, column, system))
        except InvalidSample:
            unusable += 1
            continue
        if each is not None and each < len(of_row):
            first = place % len(of_row)
            of_row = [*of_row[first:], *of_row[:first]][:each]
        questions += of_row
    if not questions:
        raise InputError(
            f"{shards.location} has no row with an image and a question or a caption that can be "
            "read; give data that aligncurate ingest or bucket wrote."
        )
    by_level = pairs and any(question.level is not None for question in questions)
    types_from = column or (LEVEL_COLUMN if by_level else FIRST_WORDS)
    text_only = len(shards) - len(with_image)
    return GateQuestions(questions, pairs, types_from, len(shards), text_only, unusable)


def _type_column(shards: ShardedDataset, by: str | None) -> str | None:
    """Return the column of the types: `by`, or the first of TYPE_COLUMNS that is usable, if any."""
    types = pa.types
    usable = [
        field.name
        for field in shards.schema
        if types.is_string(field.type)
        or types.is_large_string(field.type)
        or types.is_integer(field.type)
        or types.is_boolean(field.type)
    ]
    if by is None:
        return next((name for name in TYPE_COLUMNS if name in usable), None)
    if by not in usable:
        raise InputError(
            f"{shards.location} has no column {by} of words or whole numbers to tell types by; "
            f"give one of {', '.join(usable)}."
        )
    return by


def _rows(
    shards: ShardedDataset, chosen: npt.NDArray[np.int64], column: str | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and small columns of the rows `chosen`, in ascending order."""
    names = ("id", "caption", "conversations", _SCORE, LEVEL_COLUMN, *([column] if column else []))
    columns = list(dict.fromkeys(name for name in names if name in shards.schema.names))
    for first, _, batch in shards.iter_batches(columns):
        begin, end = np.searchsorted(chosen, [first, first + batch.num_rows])
        inside = chosen[begin:end]
        if len(inside):
            rows = batch.take(pa.array(inside - first)).to_pylist()
            yield from zip(inside.tolist(), rows, strict=True)


def _of_row(
    number: int, row: dict[str, Any], column: str | None, system: bool
) -> Iterator[GateQuestion]:
    """Yield the questions of `row`, or its caption; their type is the `column`'s, if any."""
    score, level = row.get(_SCORE), row.get(LEVEL_COLUMN)
    kind = column and ("none given" if row[column] is None else str(row[column]))
    turns = tuple(Turn(str(t["from"]), t["value"] or "") for t in row.get("conversations") or ())
    if turns:
        conversation = read_conversation(turns, 1)
        message = conversation.system if system else None
        for turn, exchange in enumerate(conversation.exchanges):
            text = exchange.question.replace(IMAGE_MARK, "").strip()
            yield GateQuestion(
                number, row["id"], turn, kind or question_type(text), text, exchange.answer,
                message, score, level,
            )  # fmt: skip
    elif text := row.get("caption"):
        if kind is None and level is not None:
            kind = f"level {level}"
        kind = kind or question_type(text)
        yield GateQuestion(number, row["id"], 0, kind, text, None, None, score, level)
