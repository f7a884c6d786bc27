"""Files of an evaluation, from which an interrupted one resumes.

Each benchmark has a folder:

    conditions.json     model, protocol, limits and data of the answers
    answers.jsonl       one line a question, appended as answers come
    judgements.jsonl    one line for each answer sent to a judge
    result.json         the score, written last
    submission.json     for benchmarks that a server scores
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from alignshared import InputError, atomic
from aligntrain.evaluate.scorers import Record, normal_answer
from aligntrain.runs.folder import LORA

CONDITIONS, ANSWERS, JUDGEMENTS = "conditions.json", "answers.jsonl", "judgements.jsonl"
RESULT, SUBMISSION = "result.json", "submission.json"
ALL_OF_VQAV2 = "v2_OpenEnded_mscoco_test2015_questions.json"
"""Questions of the whole test set, required by the VQA server; test-dev is a part of it."""
_PACKAGES = ("aligntrain", "torch", "transformers")
_ENDS = 1 << 20


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file without a truncated last one; [] if there is no file."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def write_json(file: Path, content: Any) -> None:
    """Write `content` as a JSON file, whole or not at all."""
    atomic.write(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write `lines` as a JSONL file, whole or not at all."""
    atomic.write(file, "".join(map(_line, lines)))


class JsonlLog:
    """Append-only JSONL file; `lines` holds its content."""

    def __init__(self, file: Path) -> None:
        self.lines = read_lines(file)
        self._file = file
        write_lines(file, self.lines)  # drops a truncated last line

    def append(self, line: dict[str, Any]) -> None:
        """Append `line`; it survives the end of this process."""
        with self._file.open("a", encoding="utf-8") as out:
            out.write(_line(line))
        self.lines.append(line)


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def read_conditions(folder: Path) -> dict[str, Any]:
    """Return the settings recorded with the answers in `folder`, {} if there are none."""
    file = folder / CONDITIONS
    return json.loads(file.read_bytes()) if file.is_file() else {}


def check_conditions(folder: Path, conditions: dict[str, Any]) -> None:
    """Check that the answers in `folder`, if any, were given under `conditions`.

    Raises:
        InputError: they were not.
    """
    before = read_conditions(folder)
    for key, value in conditions.items():
        if before and before.get(key) != value:
            raise InputError(
                f"{folder} holds answers under another {key} ({str(before.get(key))[:60]}, now "
                f"{str(value)[:60]}); give another output, or remove that folder."
            )


def write_conditions(folder: Path, conditions: dict[str, Any]) -> None:
    """Record `conditions` in `folder`, or check that they equal the recorded ones.

    Raises:
        InputError: they are not.
    """
    check_conditions(folder, conditions)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONDITIONS, conditions)


def versions() -> dict[str, str]:
    """Return the versions of the packages that determine a model's answers, to keep with them."""
    return {package: version(package) for package in _PACKAGES}


def fingerprint(model: Path) -> str:
    """Return a digest of the configuration, and the sizes, first and last megabytes of the
    weights, in the folder `model`; other files, such as `eval/`, do not matter.
    """
    digest = hashlib.sha256()
    for file in (*sorted(model.glob("*")), *sorted((model / LORA).glob("*"))):
        if file.suffix in (".safetensors", ".json", ".jinja") and file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.relative_to(model).as_posix()} {size}\n".encode())
            with file.open("rb") as content:
                digest.update(content.read(_ENDS))
                content.seek(max(0, size - _ENDS))
                digest.update(content.read(_ENDS))
    return digest.hexdigest()


def digest_of(images: Iterable[Image.Image]) -> str:
    """Return a digest of the pixels of `images`, which tells questions about the same ones."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def write_submission(
    name: str, records: Sequence[Record], folder: Path, data: str | Path | None
) -> str | None:
    """Write the submission file of the benchmark `name` to `folder` and return a note about it; do
    nothing for a benchmark without one. Other files it needs are looked for in `folder` and `data`.
    """
    if name not in _SUBMISSIONS:
        return None
    content, note = _SUBMISSIONS[name](records, folder, None if data is None else Path(data))
    write_json(folder / SUBMISSION, content)
    return f"{SUBMISSION} is written; {note}"


def _vqav2(records: Sequence[Record], folder: Path, data: Path | None) -> tuple[Any, str]:
    """Return normalised answers, empty ones for the other questions of the test set."""
    answers = {int(record["facts"]["id"]): normal_answer(record["text"]) for record in records}
    folders = (folder, *((data, data / "vqav2") if data else ()))
    listing = next((p / ALL_OF_VQAV2 for p in folders if (p / ALL_OF_VQAV2).is_file()), None)
    if listing is None:
        note = (
            f"the server wants every question of the test set: put {ALL_OF_VQAV2} of "
            f"https://visualqa.org/download.html into {folder} and run again"
        )
    else:
        note = "upload it at https://eval.ai/web/challenges/challenge-page/830"
        every = json.loads(listing.read_bytes())["questions"]
        answers = {int(question["question_id"]): "" for question in every} | answers
    return [{"question_id": id_, "answer": answer} for id_, answer in answers.items()], note


def _vizwiz(records: Sequence[Record], *_: Any) -> tuple[Any, str]:
    """Return an answer for each image's file name."""
    names = [f"{str(record['facts']['id']).removesuffix('.jpg')}.jpg" for record in records]
    answers = [
        {"image": name, "answer": normal_answer(record["text"])}
        for name, record in zip(names, records, strict=True)
    ]
    return answers, (
        "but its server (https://eval.ai/web/challenges/challenge-page/2185) is closed; take "
        "vizwiz-val, which is scored here"
    )


def _mm_vet(records: Sequence[Record], *_: Any) -> tuple[Any, str]:
    """Return answers by `v1_N`."""
    answers = {f"v1_{str(r['facts']['id']).removeprefix('v1_')}": r["text"] for r in records}
    return answers, "MM-Vet's own grader takes it: https://github.com/yuweihao/MM-Vet"


_SUBMISSIONS: dict[str, Callable[[Sequence[Record], Path, Path | None], tuple[Any, str]]] = {
    "vqav2": _vqav2,
    "vizwiz": _vizwiz,
    "mm-vet": _mm_vet,
}
