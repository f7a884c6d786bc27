"""The questions of a dataset that the gate is asked about, each with its picture and its type.

Every question of a conversation stands by itself, without the turns before it, so that questions
of one type are alike; of a pair without a conversation, its caption stands for the question.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignshared import InputError
from alignshared.schema import LEVEL_COLUMN
from aligntrain.data.dataset import ShardedDataset
from aligntrain.evaluate.question_types import kind_of
from aligntrain.prompts.conversation import InvalidSample, Turn, read_conversation
from aligntrain.prompts.placeholders import IMAGE_MARK

TYPE_COLUMNS = ("question_type", "type", "task", "kind", "category", "source", "dataset")
"""Where a dataset may say of what type a question is; the first that is there."""

FIRST_WORDS = "first words"
"""Where the types come from that no column gives: `kinds`."""

_SCORE = "score"


@dataclass(frozen=True, slots=True)
class Case:
    """A question about the picture of row `row`; `turn` counts those of a conversation from 0.

    `answer` is the reference, None for a pair, whose `question` is its caption. `score` and `level`
    are the row's, where it has them.
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
class Cases:
    """The questions, in the order of the rows; `pairs` says that they are captions. `kinds_from`
    is the column of the types, or FIRST_WORDS; `rows` counts the dataset's, `text_only` those
    without a picture, `unusable` what was taken and could not be read.
    """

    cases: list[Case]
    pairs: bool
    kinds_from: str
    rows: int
    text_only: int
    unusable: int


def read_cases(
    shards: ShardedDataset, *, by: str | None = None, limit: int | None = None, system: bool = True
) -> Cases:
    """Questions of `shards`, of type `by` (a column), `limit` of them at most.

    With a limit the rows are taken at equal distances, and of each as few questions as will do, in
    turn the first, the second and so on: so there are many different pictures, and all questions of
    a conversation have their part.
    Without `system` the rows' own system messages are left out. Types are those of `by`; without it
    of the first of TYPE_COLUMNS that is there, of the levels where pairs have them, and of the
    question's first words.

    Raises:
        InputError: there is no such column, or no row has a picture and a question.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit} cannot be: give 1 question or more.")
    column = _type_column(shards, by)
    pictured = _with_picture(shards)
    chosen, each = pictured, None
    if limit is not None:
        rows = min(limit, len(pictured))
        chosen = pictured[np.arange(rows) * len(pictured) // max(rows, 1)]
        each = limit // max(rows, 1)
    cases: list[Case] = []
    unusable, talks = 0, False
    for place, (number, row) in enumerate(_rows(shards, chosen, column)):
        talks = talks or bool(row.get("conversations"))
        try:
            found = list(_of_row(number, row, column))
        except InvalidSample:
            unusable += 1
            continue
        if not system:
            found = [replace(case, system=None) for case in found]
        if each is not None and each < len(found):
            turned = place % len(found)
            found = [*found[turned:], *found[:turned]][:each]
        cases += found
    if not cases:
        raise InputError(
            f"{shards.location} has no row with a picture and a question or a caption that can be "
            "read; give data that aligncurate ingest or bucket wrote."
        )
    where = column or (LEVEL_COLUMN if not talks and _has_level(cases) else FIRST_WORDS)
    text_only = len(shards) - len(pictured)
    return Cases(cases, not talks, where, len(shards), text_only, unusable)


def _type_column(shards: ShardedDataset, by: str | None) -> str | None:
    names = shards.schema.names
    if by is None:
        return next(
            (name for name in TYPE_COLUMNS if name in names and _is_type(shards, name)), None
        )
    if by not in names or not _is_type(shards, by):
        usable = [name for name in names if _is_type(shards, name)]
        raise InputError(
            f"{shards.location} has no column {by} of words or whole numbers to tell types by; "
            f"give one of {', '.join(usable)}."
        )
    return by


def _is_type(shards: ShardedDataset, name: str) -> bool:
    kind = shards.schema.field(name).type
    words = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return words or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _with_picture(shards: ShardedDataset) -> npt.NDArray[np.int64]:
    """Numbers of the rows that have a picture."""
    found = [
        first + np.flatnonzero(batch.column("image").is_valid().to_numpy(zero_copy_only=False))
        for first, _, batch in shards.iter_batches(["image.path"])
    ]
    return np.concatenate(found)


def _rows(
    shards: ShardedDataset, chosen: npt.NDArray[np.int64], column: str | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and small columns of the `chosen` rows, which ascend."""
    wanted = ("id", "caption", "conversations", _SCORE, LEVEL_COLUMN, column)
    columns = list(dict.fromkeys(name for name in wanted if name in shards.schema.names))
    for first, _, batch in shards.iter_batches([str(name) for name in columns]):
        begin, end = np.searchsorted(chosen, [first, first + batch.num_rows])
        inside = chosen[begin:end]
        if len(inside):
            rows = batch.take(pa.array(inside - first)).to_pylist()
            yield from zip(inside.tolist(), rows, strict=True)


def _of_row(number: int, row: dict[str, Any], column: str | None) -> Iterator[Case]:
    score, level = row.get(_SCORE), row.get(LEVEL_COLUMN)
    said = None if column is None else _words(row[column])

    def case(turn: int, question: str, answer: str | None, system: str | None) -> Case:
        kind = said or kind_of(question)
        if said is None and answer is None and level is not None:
            kind = f"level {level}"
        return Case(number, row["id"], turn, kind, question, answer, system, score, level)

    turns = tuple(Turn(str(t["from"]), t["value"] or "") for t in row.get("conversations") or ())
    if not turns:
        if row.get("caption"):
            yield case(0, row["caption"], None, None)
        return
    conversation = read_conversation(turns, 1)
    for turn, exchange in enumerate(conversation.exchanges):
        question = exchange.question.replace(IMAGE_MARK, "").strip()
        yield case(turn, question, exchange.answer, conversation.system)


def _words(value: Any) -> str:
    return "none given" if value is None else str(value)


def _has_level(cases: list[Case]) -> bool:
    return any(case.level is not None for case in cases)
