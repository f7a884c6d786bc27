"""What an evaluation leaves on disk, written so that a killed one goes on where it stopped.

In the folder of each benchmark: `conditions.json`, under what the answers were given and to which
data; `answers.jsonl`, one line for each question, appended as answers come; `judgements.jsonl`, one
line for each answer that a judge was asked about; `result.json`, last.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alignshared import InputError, atomic
from aligntrain.evaluate.scorers import Record, normal_answer
from aligntrain.model.lora import LORA

ANSWERS, JUDGEMENTS, RESULT = "answers.jsonl", "judgements.jsonl", "result.json"
CONDITIONS = "conditions.json"
_ENDS = 1 << 20


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, but for a last one that was cut off; none where there is none."""
    if not file.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        lines.append(json.loads(line))
    return lines


def write_json(file: Path, content: Any) -> None:
    """`content` as a JSON file, whole or not at all."""
    atomic.write(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """`lines` as a JSONL file, whole or not at all."""
    atomic.write(file, "".join(f"{_line(line)}\n" for line in lines))


class Appended:
    """A JSONL file that grows; what stands in it already is in `lines`."""

    def __init__(self, file: Path) -> None:
        self.lines = read_lines(file)
        self._file = file
        write_lines(file, self.lines)  # without a last line that was cut off

    def append(self, line: dict[str, Any]) -> None:
        """Add `line` so that it survives the end of this process."""
        with self._file.open("a", encoding="utf-8") as out:
            out.write(f"{_line(line)}\n")
        self.lines.append(line)


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)


def kept_conditions(folder: Path) -> dict[str, Any]:
    """Under what the answers in `folder` were given; nothing where there are none."""
    file = folder / CONDITIONS
    return json.loads(file.read_bytes()) if file.is_file() else {}


def check_conditions(folder: Path, conditions: dict[str, Any]) -> None:
    """See that the answers in `folder`, if any, were given under `conditions`.

    Raises:
        InputError: they were not.
    """
    before = kept_conditions(folder)
    differing = [key for key in conditions if before and before.get(key) != conditions[key]]
    if differing:
        key = differing[0]
        then, now = str(before.get(key))[:60], str(conditions[key])[:60]
        raise InputError(
            f"{folder} holds answers under another {key} ({then}, now {now}); give another output, "
            "or remove that folder."
        )


def keep_conditions(folder: Path, conditions: dict[str, Any]) -> None:
    """Write down `conditions`, all of them, or see that they are what stands there.

    Raises:
        InputError: they are not.
    """
    check_conditions(folder, conditions)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONDITIONS, conditions)


def fingerprint(model: Path) -> str:
    """A digest by which the model in the folder `model` is known again: of its configuration, and
    of the sizes, first and last megabytes of its weights.

    What else lies there, as the answers of an evaluation in `eval/`, is no part of it.
    """
    digest = hashlib.sha256()
    for file in _weights_and_config(model):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(model).as_posix()} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(_ENDS))
            content.seek(max(0, size - _ENDS))
            digest.update(content.read(_ENDS))
    return digest.hexdigest()


def _weights_and_config(model: Path) -> Iterator[Path]:
    for file in (*sorted(model.glob("*")), *sorted((model / LORA).glob("*"))):
        if file.suffix in (".safetensors", ".json", ".jinja") and file.is_file():
            yield file


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
