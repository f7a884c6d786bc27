"""Which held-out questions an ablation asks: the same of all runs, so its folder keeps which."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignshared import InputError, atomic
from aligntrain.ablation.runs import Cell
from aligntrain.ablation.score import answers_of, has_model
from aligntrain.evaluate.short_answers import HeldOut, digest_of, questions_of_rows, read_questions

ASKED = "asked.json"


@dataclass(frozen=True, slots=True)
class Asked:
    """The `questions`: those of `kinds`, all if it is empty, of those in `file`, or in the rows
    that fine-tuning leaves out if that is None.
    """

    questions: list[HeldOut]
    file: str | None
    kinds: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Their digest."""
        return digest_of(self.questions)

    def write(self, folder: Path) -> None:
        """Keep in the ablation's `folder` which they are."""
        record = {"file": self.file, "kinds": list(self.kinds), "sha256": self.sha256}
        atomic.write(folder / ASKED, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def choose_questions(
    folder: Path,
    file: str | os.PathLike[str] | None,
    kinds: Sequence[str],
    rows: tuple[str, float],
) -> Asked:
    """Those of `kinds` in `file`. Without a file that is the one of before of the ablation in
    `folder`, and its kinds unless some are given; or else `rows`: a dataset and the share of it
    that is held out.

    Raises:
        InputError: the file cannot be read, or has no question of a kind.
    """
    before = _read(folder)
    if file is None:
        file = before.get("file")
        kinds = kinds or tuple(before.get("kinds", ()))
    questions = questions_of_rows(*rows) if file is None else read_questions(Path(file))
    there = dict.fromkeys(question.kind for question in questions)
    for kind in kinds:
        if kind not in there:
            raise InputError(
                f"{file or rows[0]} has no question of the kind {kind}; there are "
                f"{', '.join(there) or 'no questions at all'}."
            )
    kept = [question for question in questions if not kinds or question.kind in kinds]
    return Asked(kept, None if file is None else os.path.abspath(file), tuple(kinds))


def check_asked(folder: Path, cells: Sequence[Cell], asked: Asked) -> None:
    """Raise InputError if finished runs of the ablation in `folder` have answered others, and can
    be asked no more: what they have answered would be lost to the report.
    """
    digest = asked.sha256
    lost = 0
    for cell in cells:
        if cell.phase == "finetune" and cell.finished and not has_model(cell):
            answers = answers_of(cell)
            lost += answers is not None and answers["questions_sha256"] != digest
    if not lost:
        return
    before = _read(folder)
    which = "the questions of before"
    if before.get("file"):
        which += f", {before['file']} as it was then (digest {before['sha256'][:12]})"
    if before.get("kinds"):
        which += f", of the kinds {', '.join(before['kinds'])}"
    raise InputError(
        f"{lost} finished run{'s' if lost > 1 else ''} in {folder} answered other questions, and "
        f"the models were not kept; give {which}, or another --output."
    )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / ASKED
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_bytes())
        if not {"file", "kinds", "sha256"} <= record.keys():
            raise ValueError("it lacks a key")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); remove it, and give --questions again."
        ) from error
    return record
