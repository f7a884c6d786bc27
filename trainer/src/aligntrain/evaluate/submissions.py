"""Files for the servers that alone know the answers, and for MM-Vet's own grader."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aligntrain.evaluate.score import Record
from aligntrain.evaluate.scorers import normal_answer
from aligntrain.evaluate.store import write_json

SUBMISSION = "submission.json"
ALL_OF_VQAV2 = "v2_OpenEnded_mscoco_test2015_questions.json"
"""The VQA server wants an answer to each question of the test set, of which test-dev is a part."""


def _vqav2(records: Sequence[Record], folder: Path, data: Path | None) -> tuple[Any, str]:
    """Server-normalised answers; the ids that were not asked get empty ones."""
    said = {int(record["facts"]["id"]): normal_answer(record["text"]) for record in records}
    places = (folder, *((data, data / "vqav2") if data else ()))
    listing = next((p / ALL_OF_VQAV2 for p in places if (p / ALL_OF_VQAV2).is_file()), None)
    note = "upload it at https://eval.ai/web/challenges/challenge-page/830"
    if listing is None:
        note = (
            f"the server wants every question of the test set: put {ALL_OF_VQAV2} of "
            f"https://visualqa.org/download.html into {folder} and run again"
        )
    else:
        every = [int(one["question_id"]) for one in json.loads(listing.read_bytes())["questions"]]
        said = dict.fromkeys(every, "") | said
    return [{"question_id": id_, "answer": answer} for id_, answer in said.items()], note


def _vizwiz(records: Sequence[Record], *_: Any) -> tuple[Any, str]:
    """An answer for each picture's file name."""
    said = [
        {
            "image": f"{str(record['facts']['id']).removesuffix('.jpg')}.jpg",
            "answer": normal_answer(record["text"]),
        }
        for record in records
    ]
    return said, (
        "but its server (https://eval.ai/web/challenges/challenge-page/2185) is closed; take "
        "vizwiz-val, which is scored here"
    )


def _mm_vet(records: Sequence[Record], *_: Any) -> tuple[Any, str]:
    """Answers by `v1_N`."""
    said = {f"v1_{str(r['facts']['id']).removeprefix('v1_')}": r["text"] for r in records}
    return said, "MM-Vet's own grader takes it: https://github.com/yuweihao/MM-Vet"


_FORMS: dict[str, Callable[[Sequence[Record], Path, Path | None], tuple[Any, str]]] = {
    "vqav2": _vqav2,
    "vizwiz": _vizwiz,
    "mm-vet": _mm_vet,
}


def write_submission(
    name: str, records: Sequence[Record], folder: Path, data: str | Path | None
) -> str | None:
    """Write the submission file of the benchmark `name` to `folder`; a note, None without one.

    What the file needs beside the answers is looked for in `folder` and in `data`, the folder with
    the benchmarks' files.
    """
    if name not in _FORMS:
        return None
    content, note = _FORMS[name](records, folder, None if data is None else Path(data))
    write_json(folder / SUBMISSION, content)
    return f"{SUBMISSION} is written; {note}"
