"""What a finished fine-tuning came to: its held-out loss, and its answers to held-out questions."""

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignshared import AlignError, atomic
from aligntrain.ablation.compare import LOSS, RIGHT, RIGHT_ALL
from aligntrain.ablation.runs import Cell
from aligntrain.evaluate.short_answers import ALL, HeldOut, ask, digest_of, scores
from aligntrain.model.lora import LORA
from aligntrain.runs.folder import ADAPTER, ending_of

ANSWERS = "held-out.json"
"""In the folder of a run: what it said, and the scores."""

_WEIGHTS = "model*.safetensors*"
_BATCH = 32
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

Begin = Callable[[str, int], Callable[[int], None]]
Progress = Callable[[], AbstractContextManager[Begin]]
"""Opened while questions are asked: called with what begins and how many there are, it gives what
is called with how many are done.
"""


@contextmanager
def silent() -> Iterator[Begin]:
    """Progress that nobody sees."""
    yield lambda _what, _count: lambda _done: None


@dataclass(frozen=True, slots=True)
class Judged:
    """The metrics of a run; `unasked` says that there are questions and it was not asked them."""

    values: dict[str, float]
    unasked: bool


def judge(cell: Cell, questions: Sequence[HeldOut], progress: Progress = silent) -> Judged:
    """The metrics of the finished run `cell`: validation loss where some data are held out, and the
    share of right answers of each kind of question, and of all where there are several. What was
    asked before is not asked again; without its model a run cannot be asked anything else.

    Raises:
        AlignError: the model cannot be loaded or cannot answer.
    """
    found: dict[str, float] = {}
    loss = (ending_of(cell.folder) or {}).get("validation_loss")
    if loss is not None:
        found[LOSS] = float(loss)
    if not questions:
        return Judged(found, unasked=False)
    digest = digest_of(questions)
    written = answers_of(cell)
    if written is None or written["questions_sha256"] != digest:
        if not has_model(cell):
            return Judged(found, unasked=True)
        written = _ask(cell, questions, digest, progress)
    return Judged(found | _shares(written["scores"]), unasked=False)


def has_model(cell: Cell) -> bool:
    """Whether the model of `cell` was kept."""
    return any(cell.export.glob(_WEIGHTS)) or (cell.export / LORA).is_dir()


def answers_of(cell: Cell) -> dict[str, Any] | None:
    """The `scores` of what `cell` was asked before, with its `questions_sha256`; None if there was
    nothing, or it cannot be read.
    """
    try:
        written = json.loads((cell.folder / ANSWERS).read_bytes())
        return written if {"questions_sha256", "scores"} <= written.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _shares(found: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    shares = {RIGHT + kind: score["right"] / score["asked"] for kind, score in found.items()}
    if len(found) > 1 and ALL not in found:
        right, asked = (sum(s[key] for s in found.values()) for key in ("right", "asked"))
        shares[RIGHT_ALL] = right / asked
    return shares


def _ask(
    cell: Cell, questions: Sequence[HeldOut], digest: str, progress: Progress
) -> dict[str, Any]:
    said, problem = _answers(cell, questions, progress)
    # The model is gone by now, with the frames of an error; the next training needs its memory.
    _release()
    if said is None:
        raise AlignError(problem)
    record = {
        "questions_sha256": digest,
        "scores": {kind: asdict(score) for kind, score in scores(questions, said).items()},
        "said": said,
    }
    atomic.write(cell.folder / ANSWERS, json.dumps(record, indent=1, ensure_ascii=False))
    return record


def _answers(
    cell: Cell, questions: Sequence[HeldOut], progress: Progress
) -> tuple[list[str] | None, str]:
    """What the model says; or None, and why it says nothing."""
    from safetensors import SafetensorError

    from aligntrain.inference.load import load_to_answer

    try:
        model, processor = load_to_answer(cell.folder)
        with progress() as begin:
            done = begin(cell.name, len(questions))
            return ask(model, processor, questions, batch_size=_BATCH, done=done), ""
    except AlignError as error:
        return None, str(error)
    except SafetensorError as error:
        return None, (
            f"the model in {cell.export} is damaged ({error}); remove {cell.folder} to "
            "train it again."
        )
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(
            sign in str(error).lower() for sign in _NO_MEMORY
        ):
            raise
        return None, "memory ran out as it answered; free some, and give the same command again."


def _release() -> None:
    """Give memory that nothing holds any more back to the machine and to its GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def drop_weights(cell: Cell) -> int:
    """Remove checkpoints and whole weights of the finished run `cell`, of which the small adapter
    file, the metrics and the answers stay; the bytes that came free.
    """
    files: list[Path] = [*cell.export.glob(_WEIGHTS), *(cell.folder / "checkpoints").rglob("*")]
    freed = 0
    for file in files:
        if file.is_file() and file.name != ADAPTER:
            freed += file.stat().st_size
            file.unlink()
    return freed
