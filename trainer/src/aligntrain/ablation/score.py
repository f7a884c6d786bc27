"""Scores of the runs: held-out loss, and right answers to held-out questions.

The questions are the same for all runs of an ablation, so its folder records them.
"""

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignshared import AlignError, InputError, atomic
from aligntrain.ablation.compare import LOSS, RIGHT, RIGHT_ALL
from aligntrain.ablation.runs import AblationRun
from aligntrain.evaluate.short_answers import (
    ALL,
    ShortQuestion,
    ask,
    digest_of,
    questions_of_rows,
    read_questions,
    scores,
)
from aligntrain.runs.folder import ADAPTER, LORA, result_of

ANSWERS = "held-out.json"
"""File in the folder of a run: its answers and their scores."""
QUESTIONS_FILE = "asked.json"

_WEIGHTS = "model*.safetensors*"
_BATCH = 32
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

Begin = Callable[[str, int], Callable[[int], None]]
Progress = Callable[[], AbstractContextManager[Begin]]
"""Opened while questions are answered; yields a function from task and total to its counter."""


def silent() -> AbstractContextManager[Begin]:
    """Show no progress."""
    return nullcontext(lambda _what, _count: lambda _done: None)


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
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        atomic.write(folder / QUESTIONS_FILE, text)


def choose_questions(
    folder: Path, file: str | os.PathLike[str] | None, kinds: Sequence[str], rows: tuple[str, float]
) -> QuestionSet:
    """Return the questions of `kinds` in `file`.

    Without a file, the file and kinds recorded in the ablation's `folder` are used again; without
    a record, the questions come from `rows`: a dataset and the share of it that is held out.

    Raises:
        InputError: the file cannot be read, or has no question of a kind.
    """
    before = _recorded_questions(folder)
    if file is None:
        file = before.get("file")
        kinds = kinds or before.get("kinds", ())
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
    gone = [r for r in runs if r.phase == "finetune" and r.finished and not has_model(r)]
    answers = [written for run in gone if (written := _recorded_answers(run)) is not None]
    lost = sum(written["questions_sha256"] != digest for written in answers)
    if not lost:
        return
    before = _recorded_questions(folder)
    which = "the questions of before"
    if before.get("file"):
        which += f", {before['file']} as it was then (digest {before['sha256'][:12]})"
    if before.get("kinds"):
        which += f", of the kinds {', '.join(before['kinds'])}"
    raise InputError(
        f"{lost} finished run{'s' if lost > 1 else ''} in {folder} answered other questions, and "
        f"the models were not kept; give {which}, or another --output."
    )


def _recorded_questions(folder: Path) -> dict[str, Any]:
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


@dataclass(frozen=True, slots=True)
class RunScores:
    """Metrics of a run; `unasked` if there are questions that it was not asked."""

    values: dict[str, float]
    unasked: bool


def score_run(
    run: AblationRun, questions: Sequence[ShortQuestion], progress: Progress = silent
) -> RunScores:
    """Return the metrics of the finished `run`: validation loss if some data are held out, and the
    share of right answers to each kind of question and to all.

    Recorded answers to the same questions are reused; other questions need the model.

    Raises:
        AlignError: the model cannot be loaded or cannot answer.
    """
    loss = (result_of(run.folder) or {}).get("validation_loss")
    values = {} if loss is None else {LOSS: float(loss)}
    if not questions:
        return RunScores(values, unasked=False)
    digest = digest_of(questions)
    written = _recorded_answers(run)
    if written is None or written["questions_sha256"] != digest:
        if not has_model(run):
            return RunScores(values, unasked=True)
        written = _ask(run, questions, digest, progress)
    return RunScores(values | _shares(written["scores"]), unasked=False)


def has_model(run: AblationRun) -> bool:
    """Return whether the model of `run` was kept."""
    return any(run.export.glob(_WEIGHTS)) or (run.export / LORA).is_dir()


def drop_weights(run: AblationRun) -> None:
    """Remove checkpoints and full weights of the finished `run`, but not its adapter file."""
    for file in (*run.export.glob(_WEIGHTS), *(run.folder / "checkpoints").rglob("*")):
        if file.is_file() and file.name != ADAPTER:
            file.unlink()


def _recorded_answers(run: AblationRun) -> dict[str, Any] | None:
    """Return the recorded answers of `run`, None if there are none or they cannot be read."""
    try:
        written = json.loads((run.folder / ANSWERS).read_bytes())
        return written if {"questions_sha256", "scores"} <= written.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _shares(scores_by_kind: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    shares = {RIGHT + kind: one["right"] / one["asked"] for kind, one in scores_by_kind.items()}
    if len(scores_by_kind) > 1 and ALL not in scores_by_kind:
        right, asked = (sum(s[key] for s in scores_by_kind.values()) for key in ("right", "asked"))
        shares[RIGHT_ALL] = right / asked
    return shares


def _ask(
    run: AblationRun, questions: Sequence[ShortQuestion], digest: str, progress: Progress
) -> dict[str, Any]:
    import torch

    answers = _answers(run, questions, progress)
    # By now the model and the frames of any error are gone; the next training needs their memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if isinstance(answers, AlignError):
        raise answers
    record = {
        "questions_sha256": digest,
        "scores": {kind: asdict(score) for kind, score in scores(questions, answers).items()},
        "said": answers,
    }
    atomic.write(run.folder / ANSWERS, json.dumps(record, indent=1, ensure_ascii=False))
    return record


def _answers(
    run: AblationRun, questions: Sequence[ShortQuestion], progress: Progress
) -> list[str] | AlignError:
    """Return the answers, or the reason for none: a raised error would hold the model."""
    from safetensors import SafetensorError

    from aligntrain.inference.load import load_for_inference

    try:
        model, processor = load_for_inference(run.folder)
        with progress() as begin:
            done = begin(run.name, len(questions))
            return ask(model, processor, questions, batch_size=_BATCH, done=done)
    except AlignError as error:
        return AlignError(str(error))
    except SafetensorError as error:
        return AlignError(
            f"the model in {run.export} is damaged ({error}); remove {run.folder} to "
            "train it again."
        )
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(
            sign in str(error).lower() for sign in _NO_MEMORY
        ):
            raise
        return AlignError(
            "memory ran out as it answered; free some, and give the same command again."
        )
