"""The held-out questions of an ablation: the same for all runs, so its folder records them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignshared import InputError, atomic
from aligntrain.ablation.runs import AblationRun
from aligntrain.ablation.score import answers_of, has_model
from aligntrain.evaluate.short_answers import (
    ShortQuestion,
    digest_of,
    questions_of_rows,
    read_questions,
)

QUESTIONS_FILE = "asked.json"


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions of `kinds` (all if empty) from `file`, or from the rows held out of fine-tuning if
    that is None.
    """

    questions: list[ShortQuestion]
    file: str | None
    kinds: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Digest of the questions."""
        return digest_of(self.questions)

    def write(self, folder: Path) -> None:
        """Record file, kinds and digest in the ablation's `folder`."""
        record = {"file": self.file, "kinds": list(self.kinds), "sha256": self.sha256}
        atomic.write(
            folder / QUESTIONS_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        )


def choose_questions(
    folder: Path,
    file: str | os.PathLike[str] | None,
    kinds: Sequence[str],
    rows: tuple[str, float],
) -> QuestionSet:
    """Return the questions of `kinds` in `file`.

    Without a file, the file and kinds recorded in the ablation's `folder` are used again; without
    a record, the questions come from `rows`: a dataset and the share of it that is held out.

    Raises:
        InputError: the file cannot be read, or has no question of a kind.
    """
    before = _read(folder)
    if file is None:
        file = before.get("file")
        kinds = kinds or tuple(before.get("kinds", ()))
    questions = questions_of_rows(*rows) if file is None else read_questions(Path(file))
    known = dict.fromkeys(question.kind for question in questions)
    for kind in kinds:
        if kind not in known:
            raise InputError(
                f"{file or rows[0]} has no question of the kind {kind}; there are "
                f"{', '.join(known) or 'no questions at all'}."
            )
    chosen = [question for question in questions if not kinds or question.kind in kinds]
    return QuestionSet(chosen, None if file is None else os.path.abspath(file), tuple(kinds))


def check_questions(folder: Path, runs: Sequence[AblationRun], question_set: QuestionSet) -> None:
    """Raise InputError if finished runs of the ablation in `folder` answered other questions and
    their models are gone: the report would lose those answers.
    """
    digest = question_set.sha256
    lost = 0
    for run in runs:
        if run.phase == "finetune" and run.finished and not has_model(run):
            answers = answers_of(run)
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
    path = folder / QUESTIONS_FILE
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
