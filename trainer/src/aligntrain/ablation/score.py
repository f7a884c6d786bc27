"""Scores of a finished fine-tuning: held-out loss, and right answers to held-out questions."""

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignshared import AlignError, atomic
from aligntrain.ablation.compare import LOSS, RIGHT, RIGHT_ALL
from aligntrain.ablation.runs import AblationRun
from aligntrain.evaluate.short_answers import ALL, ShortQuestion, ask, digest_of, scores
from aligntrain.model.lora import LORA
from aligntrain.runs.folder import ADAPTER, result_of

ANSWERS = "held-out.json"
"""File in the folder of a run: its answers and their scores."""

_WEIGHTS = "model*.safetensors*"
_BATCH = 32
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

Begin = Callable[[str, int], Callable[[int], None]]
Progress = Callable[[], AbstractContextManager[Begin]]
"""Opened while questions are answered: called with a description and a total, it returns the
function that counts finished questions.
"""


@contextmanager
def silent() -> Iterator[Begin]:
    """Show no progress."""
    yield lambda _what, _count: lambda _done: None


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
    values: dict[str, float] = {}
    loss = (result_of(run.folder) or {}).get("validation_loss")
    if loss is not None:
        values[LOSS] = float(loss)
    if not questions:
        return RunScores(values, unasked=False)
    digest = digest_of(questions)
    written = answers_of(run)
    if written is None or written["questions_sha256"] != digest:
        if not has_model(run):
            return RunScores(values, unasked=True)
        written = _ask(run, questions, digest, progress)
    return RunScores(values | _shares(written["scores"]), unasked=False)


def has_model(run: AblationRun) -> bool:
    """Return whether the model of `run` was kept."""
    return any(run.export.glob(_WEIGHTS)) or (run.export / LORA).is_dir()


def answers_of(run: AblationRun) -> dict[str, Any] | None:
    """Return the recorded answers of `run` with their `scores` and `questions_sha256`; None if
    there are none, or they cannot be read.
    """
    try:
        written = json.loads((run.folder / ANSWERS).read_bytes())
        return written if {"questions_sha256", "scores"} <= written.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _shares(scores_by_kind: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    shares = {
        RIGHT + kind: score["right"] / score["asked"] for kind, score in scores_by_kind.items()
    }
    if len(scores_by_kind) > 1 and ALL not in scores_by_kind:
        right, asked = (sum(s[key] for s in scores_by_kind.values()) for key in ("right", "asked"))
        shares[RIGHT_ALL] = right / asked
    return shares


def _ask(
    run: AblationRun, questions: Sequence[ShortQuestion], digest: str, progress: Progress
) -> dict[str, Any]:
    answers, problem = _answers(run, questions, progress)
    # By now the model and the frames of any error are gone; the next training needs their memory.
    _release()
    if answers is None:
        raise AlignError(problem)
    record = {
        "questions_sha256": digest,
        "scores": {kind: asdict(score) for kind, score in scores(questions, answers).items()},
        "said": answers,
    }
    atomic.write(run.folder / ANSWERS, json.dumps(record, indent=1, ensure_ascii=False))
    return record


def _answers(
    run: AblationRun, questions: Sequence[ShortQuestion], progress: Progress
) -> tuple[list[str] | None, str]:
    """Return the answers of the model, or None and the reason."""
    from safetensors import SafetensorError

    from aligntrain.inference.load import load_for_inference

    try:
        model, processor = load_for_inference(run.folder)
        with progress() as begin:
            done = begin(run.name, len(questions))
            return ask(model, processor, questions, batch_size=_BATCH, done=done), ""
    except AlignError as error:
        return None, str(error)
    except SafetensorError as error:
        return None, (
            f"the model in {run.export} is damaged ({error}); remove {run.folder} to "
            "train it again."
        )
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(
            sign in str(error).lower() for sign in _NO_MEMORY
        ):
            raise
        return None, "memory ran out as it answered; free some, and give the same command again."


def _release() -> None:
    """Return unused memory to the machine and its GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def drop_weights(run: AblationRun) -> int:
    """Remove checkpoints and full weights of the finished `run` and return the bytes freed; the
    adapter file, the metrics and the answers stay.
    """
    files: list[Path] = [*run.export.glob(_WEIGHTS), *(run.folder / "checkpoints").rglob("*")]
    freed = 0
    for file in files:
        if file.is_file() and file.name != ADAPTER:
            freed += file.stat().st_size
            file.unlink()
    return freed
