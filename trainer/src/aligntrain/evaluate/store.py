"""What an evaluation leaves on disk, written so that a killed one goes on where it stopped.

In the folder of each benchmark: `conditions.json`, under what the answers were given and to which
data; `answers.jsonl`, one line for each question, appended as answers come; `judgements.jsonl`, one
line for each answer that a judge was asked about; `result.json`, last.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alignshared import InputError
from aligntrain.model.lora import LORA
from aligntrain.runs.files import write_whole

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
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """`lines` as a JSONL file, whole or not at all."""
    write_whole(file, "".join(f"{_line(line)}\n" for line in lines))


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
