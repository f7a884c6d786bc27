"""Counting the right answers to the demo's held-out questions."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script(repository: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "pipelines/demo_data"))
        return import_module("answer_questions")


def asked(count: int) -> list[dict[str, Any]]:
    return [
        {"id": str(number), "image": "a.png", "kind": kind, "question": "?", "answer": answer}
        for number in range(count)
        for kind, answer in (("group", "flags" if number % 4 else "symbols"), ("is_this", "Yes"))
    ]


def test_pictures_are_spread_over_all_and_kinds_are_chosen(script: Any, tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps(asked(10)))
    some = script.read_questions(tmp_path / "questions.json", 5, ["group"])
    assert [question["id"] for question in some] == ["0", "2", "4", "6", "8"]
    assert len(script.read_questions(tmp_path / "questions.json")) == 20
    assert len(script.read_questions(tmp_path / "questions.json", 99)) == 20


def test_scores_stand_beside_the_best_constant_answer(script: Any) -> None:
    questions = asked(4)
    said = ["Flags.", "no", "flags", " Yes ", "symbols", "yes.", "a flag", ""]
    found = script.scores(questions, said)
    assert (found["group"].asked, found["group"].right) == (4, 1)
    assert found["group"].constant == 0.75
    assert found["is_this"].accuracy == 0.5
