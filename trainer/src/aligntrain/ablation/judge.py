"""What a finished fine-tuning came to: its held-out loss, and its answers to held-out questions."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from alignshared import AlignError
from aligntrain.ablation.cells import Cell
from aligntrain.ablation.compare import LOSS
from aligntrain.held_out import HeldOut, ask, scores
from aligntrain.job import ADAPTER, ending_of
from aligntrain.lora import LORA

ANSWERS = "held-out.json"
"""In the folder of a run: what it said, and the scores."""

_WEIGHTS = "model*.safetensors*"
_BATCH = 32


def judge(
    cell: Cell, questions: Sequence[HeldOut], done: Callable[[int], None]
) -> dict[str, float]:
    """The metrics of the finished run `cell`: validation loss where some data are held out, and the
    share of right answers of each kind of question. What was asked before is not asked again.

    Raises:
        AlignError: there are questions that were not asked, and the model is not there any more.
    """
    found: dict[str, float] = {}
    loss = (ending_of(cell.folder) or {}).get("validation_loss")
    if loss is not None:
        found[LOSS] = float(loss)
    if questions:
        found |= _accuracies(cell, questions, done)
    return found


def _accuracies(
    cell: Cell, questions: Sequence[HeldOut], done: Callable[[int], None]
) -> dict[str, float]:
    digest = _digest(questions)
    path = cell.folder / ANSWERS
    if path.is_file():
        written = json.loads(path.read_bytes())
        if written["questions_sha256"] == digest:
            return {
                f"right, {kind}": s["right"] / s["asked"] for kind, s in written["scores"].items()
            }
    if not list(cell.export.glob(_WEIGHTS)) and not (cell.export / LORA).is_dir():
        raise AlignError(
            f"the model of {cell.folder} was not kept, and these questions were not asked; give "
            "the questions of before, or remove that folder to train it again."
        )
    said = _said(cell, questions, done)
    found = scores(questions, said)
    record = {
        "questions_sha256": digest,
        "scores": {kind: asdict(score) for kind, score in found.items()},
        "said": said,
    }
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(unfinished, path)
    return {f"right, {kind}": score.accuracy for kind, score in found.items()}


def _said(cell: Cell, questions: Sequence[HeldOut], done: Callable[[int], None]) -> list[str]:
    import torch

    from aligntrain.load import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else "auto"
    model, processor = load_model(cell.folder, dtype=dtype, device=device)
    return ask(model, processor, questions, batch_size=_BATCH, done=done)


def _digest(questions: Sequence[HeldOut]) -> str:
    digest = hashlib.sha256()
    for one in questions:
        picture = one.picture if isinstance(one.picture, bytes) else one.picture.name.encode()
        for part in (one.id, one.kind, one.question, one.answer):
            digest.update(part.encode() + b"\0")
        digest.update(hashlib.sha256(picture).digest())
    return digest.hexdigest()


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
