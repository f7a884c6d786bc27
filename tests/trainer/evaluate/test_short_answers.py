"""Held-out questions: which are asked, and which answers are right."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignshared import InputError
from aligntrain.evaluate.short_answers import (
    ShortQuestion,
    questions_of_rows,
    read_questions,
    scores,
)
from tests.trainer import rows


def asked(count: int) -> list[dict[str, Any]]:
    return [
        {"id": str(number), "image": "a.png", "kind": kind, "question": "?", "answer": answer}
        for number in range(count)
        for kind, answer in (("group", "flags" if number % 4 else "symbols"), ("is_this", "Yes"))
    ]


def test_pictures_are_spread_over_all_and_kinds_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps(asked(10)))
    some = read_questions(tmp_path / "questions.json", 5, ["group"])
    assert [question.id for question in some] == ["0", "2", "4", "6", "8"]
    assert len(read_questions(tmp_path / "questions.json")) == 20
    assert len(read_questions(tmp_path / "questions.json", 99)) == 20


def test_scores_stand_beside_the_best_constant_answer(tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps(asked(4)))
    questions = read_questions(tmp_path / "questions.json")
    said = ["Flags.", "no", "flags", " Yes ", "symbols", "yes.", "a flag", ""]
    found = scores(questions, said)
    assert (found["group"].asked, found["group"].right) == (4, 1)
    assert found["group"].constant == 0.75
    assert found["is_this"].accuracy == 0.5


def test_files_that_are_no_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    for content in ("{", '[{"id": "1"}]', json.dumps(asked(1)).replace("a.png", "../a.png")):
        path.write_text(content)
        with pytest.raises(InputError, match="cannot be read as questions"):
            read_questions(path)


def test_rows_that_training_leaves_out_are_asked_about(tmp_path: Path) -> None:
    data = rows.write_rows(tmp_path, rows.talk_rows(60))
    found = questions_of_rows(data.location, 0.5)
    assert 0 < len(found) < 40
    assert all(isinstance(question, ShortQuestion) for question in found)
    assert all(len(question.answer.split()) <= 3 for question in found)  # most have more words
    assert questions_of_rows(data.location, 0.0) == []


def test_of_a_conversation_the_first_question_alone_is_asked(tmp_path: Path) -> None:
    """The others may lean on it: what asks for a single word often stands there alone."""
    talks = rows.talk_rows(4, text_every=5)
    for number, row in enumerate(talks):
        short, long = ("red", "it is a red kite") if number % 2 else ("it is a red kite", "red")
        turns = [("<image>\nWhich colour?\nUse a single word.", short), ("And this?", long)]
        row["conversations"] = [
            {"from": who, "value": text}
            for question, answer in turns
            for who, text in (("human", question), ("gpt", answer))
        ]
    data = rows.write_rows(tmp_path, talks)
    found = questions_of_rows(data.location, 0.999)
    assert [(q.id, q.answer) for q in found] == [("talk-0001", "red"), ("talk-0003", "red")]
    assert all(q.question.endswith("Use a single word.") for q in found)
