"""Files for servers: every id that they want, wherever its listing lies."""

import json
from pathlib import Path
from typing import Any

import pytest

from aligntrain.evaluate.store import ALL_OF_VQAV2, write_submission

RECORDS: list[dict[str, Any]] = [
    {"text": "Two dogs.", "facts": {"id": "11"}},  # the Hub's ids may be words
    {"text": "yes", "facts": {"id": 12}},
]


def list_questions(folder: Path, ids: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listing = {"questions": [{"question_id": one, "question": "?"} for one in ids]}
    (folder / ALL_OF_VQAV2).write_text(json.dumps(listing))


@pytest.mark.parametrize("place", ["data", "data/vqav2", "eval/vqav2"])
def test_the_listing_of_vqav2_is_found_beside_data_or_answers(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "eval" / "vqav2"
    list_questions(tmp_path / place, [10, 11, "12", 13])
    folder.mkdir(parents=True, exist_ok=True)
    note = write_submission("vqav2", RECORDS, folder, tmp_path / "data")
    assert note is not None
    assert "upload it at" in note
    said = json.loads((folder / "submission.json").read_text())
    assert {one["question_id"]: one["answer"] for one in said} == {
        10: "", 11: "2 dogs", 12: "yes", 13: "",
    }  # fmt: skip
    assert len(said) == 4


def test_without_the_listing_the_note_names_one_place_for_it(tmp_path: Path) -> None:
    note = write_submission("vqav2", RECORDS, tmp_path, None)
    assert note is not None
    assert f"put {ALL_OF_VQAV2} of https://visualqa.org/download.html into {tmp_path} and" in note


def test_the_server_of_vizwiz_is_closed(tmp_path: Path) -> None:
    note = write_submission("vizwiz", [{"text": "A cat", "facts": {"id": "v.jpg"}}], tmp_path, None)
    assert note is not None
    assert note.endswith("is closed; take vizwiz-val, which is scored here")
    said = json.loads((tmp_path / "submission.json").read_text())
    assert said == [{"image": "v.jpg", "answer": "cat"}]
