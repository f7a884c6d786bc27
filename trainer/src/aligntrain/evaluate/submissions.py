"""Files for the servers that alone know the answers, and for MM-Vet's own grader."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aligntrain.evaluate.open_answers import normal_answer
from aligntrain.evaluate.records import write_json
from aligntrain.evaluate.score import Record

SUBMISSION = "submission.json"
ALL_OF_VQAV2 = "v2_OpenEnded_mscoco_test2015_questions.json"
"""The VQA server wants an answer to each question of the test set, of which test-dev is a part."""


def _vqav2(records: Sequence[Record], data: Path) -> tuple[Any, str]:
    """Server-normalised answers; the ids that were not asked get empty ones."""
    said = {record["facts"]["id"]: normal_answer(record["text"]) for record in records}
    listing = next((place for place in sorted(data.rglob(ALL_OF_VQAV2))), None)
    note = "upload it at https://eval.ai/web/challenges/challenge-page/830"
    if listing is None:
        note = (
            f"the server wants every question of the test set: put {ALL_OF_VQAV2} of "
            f"https://visualqa.org/download.html into the data folder and run again"
        )
    else:
        every = [one["question_id"] for one in json.loads(listing.read_bytes())["questions"]]
        said = dict.fromkeys(every, "") | said
    return [{"question_id": id_, "answer": answer} for id_, answer in said.items()], note


def _vizwiz(records: Sequence[Record], _data: Path) -> tuple[Any, str]:
    """An answer for each picture's file name."""
    said = [
        {
            "image": f"{str(record['facts']['id']).removesuffix('.jpg')}.jpg",
            "answer": normal_answer(record["text"]),
        }
        for record in records
    ]
    return said, "the server (https://eval.ai/web/challenges/challenge-page/2185) takes it"


def _mm_vet(records: Sequence[Record], _data: Path) -> tuple[Any, str]:
    """Answers by `v1_N`."""
    said = {f"v1_{str(r['facts']['id']).removeprefix('v1_')}": r["text"] for r in records}
    return said, "MM-Vet's own grader takes it: https://github.com/yuweihao/MM-Vet"


_FORMS: dict[str, Callable[[Sequence[Record], Path], tuple[Any, str]]] = {
    "vqav2": _vqav2,
    "vizwiz": _vizwiz,
    "mm-vet": _mm_vet,
}


def write_submission(name: str, records: Sequence[Record], folder: Path, data: Path) -> str | None:
    """Write the submission file of the benchmark `name` to `folder`; a note, None without one.

    `data` is the folder of the benchmark's data.
    """
    if name not in _FORMS:
        return None
    content, note = _FORMS[name](records, data)
    write_json(folder / SUBMISSION, content)
    return f"{SUBMISSION} is written; {note}"
