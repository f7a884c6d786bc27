"""`aligntrain gate`: report on a model's gate over a dataset, as a page and as data."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from alignshared import Dataset, InputError, atomic
from aligntrain.data.dataset import ShardedDataset
from aligntrain.gate.measure import SweepResult, batches, gate_weights, sweep_levels, with_images
from aligntrain.gate.questions import GateQuestion, GateQuestions, read_gate_questions
from aligntrain.gate.report import EXAMPLES, render_page, samples_table, summary_of
from aligntrain.gate.summary import (
    KindWeights,
    Measurements,
    Setting,
    Weights,
    by_kind,
    highest,
    settings_by_kind,
)
from aligntrain.inference.load import load_model

REPORT = "report.html"
SUMMARY = "gate.json"
SAMPLES = "gate.parquet"
FOLDER = "gate"
"""Default folder of the report, in the model's."""

Progress = Callable[[str, int], Callable[[int], None]]
"""Called with a task and its number of questions; returns a callback for those done."""


@dataclass(frozen=True, slots=True)
class GateReport:
    """Folder and main numbers of the report; `without` is the reason for missing weights."""

    output: Path
    questions: int
    kinds: list[KindWeights]
    swept: list[Setting]
    without: str | None


def explain_gate(  # noqa: PLR0913 - one argument per option
    checkpoint: str | Path,
    data: str | os.PathLike[str],
    *,
    output: str | Path | None = None,
    limit: int | None = 2000,
    batch_size: int = 8,
    by: str | None = None,
    sweep: bool = False,
    sweep_limit: int = 256,
    device: str | None = None,
    progress: Progress = lambda _what, _count: lambda _done: None,
) -> GateReport:
    """Report on the gate of the model in `checkpoint` over questions of the dataset `data`.

    Args:
        checkpoint: a run's folder, or a model's own.
        data: a dataset with conversations, or pairs, whose captions the gate reads.
        output: folder of the report; by default `gate` in the folder of the model.
        limit: questions at most, spread over the dataset; None for all.
        batch_size: prompts at once; weights depend on it only by rounding.
        by: the column of the questions' types.
        sweep: also force every level on `sweep_limit` of the questions.
        sweep_limit: questions of the sweep, spread over the others.
        device: by default a GPU if there is one.
        progress: called as tasks begin and advance.

    Raises:
        InputError: the model or the data cannot be used, the model has nothing to report on, or
            `output` holds something else.
    """
    if batch_size < 1 or sweep_limit < 1:
        raise InputError(
            "--batch-size and --sweep-limit must be at least 1 "
            f"(got {batch_size} and {sweep_limit})."
        )
    folder = _output(checkpoint, output)
    model, processor = _load(checkpoint, device)
    without = _without(model.config, processor, sweep=sweep)
    shards = ShardedDataset(data, conversations="caption" not in Dataset(data).schema.names)
    # Of the templates, only the tokenizer's own has a place for a row's system message.
    read = read_gate_questions(shards, by=by, limit=limit, system=processor.template == "chat")
    if processor.template == "plain" and not read.pairs:
        raise InputError(
            f"{checkpoint} is only pretrained, so it reads no questions, and {data} holds "
            "conversations; give pairs, or a fine-tuned model."
        )
    parts = (shards, batch_size, progress)
    questions, weights = _measure(model, processor, read, *parts, gate=without is None)
    swept: list[SweepResult] = []
    if sweep:
        swept = _sweep(model, processor, questions, *parts, limit=sweep_limit)
    pictures = _shown(shards, questions, weights)
    found = Measurements(
        Path(checkpoint), model, shards.dataset, read, questions, weights, swept, pictures, without
    )
    _write(found, folder)
    kinds = [] if weights is None else by_kind(questions, weights)
    settings = settings_by_kind(questions, swept) if swept else {}
    return GateReport(folder, len(questions), kinds, next(iter(settings.values()), []), without)


def _output(checkpoint: str | Path, output: str | Path | None) -> Path:
    folder = Path(checkpoint) / FOLDER if output is None else Path(output)
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / SUMMARY).is_file()
    ):
        raise InputError(
            f"{folder} holds something else than a report on a gate; give another --output."
        )
    return folder


def _load(checkpoint: str | Path, device: str | None) -> tuple[Any, Any]:
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else "auto"
    return load_model(checkpoint, dtype=dtype, device=device)


def _without(config: Any, processor: Any, *, sweep: bool) -> str | None:
    """Return why the model has no gate weights to report; None if it has.

    Raises:
        InputError: there is nothing to report at all.
    """
    if not config.has_table:
        raise InputError(
            "the model is plain LLaVA (mixing none): it has neither level vectors nor a gate, so "
            "there is nothing to report; give a model of another mixing."
        )
    if not config.has_gate:
        top = "the top level's vector"
        mix = top if config.mixing == "global" else f"{top} and the mean of the others"
        reason = f"the model has mixing {config.mixing} and no gate: every image gets {mix}"
    elif processor.template == "plain":
        reason = (
            "the model is only pretrained: its gate is as it was drawn at random and learns in "
            "fine-tuning"
        )
    else:
        return None
    if not sweep:
        raise InputError(
            f"{reason}, so there are no weights to report; --sweep shows what each level does when "
            "it is forced."
        )
    return reason


def _measure(
    model: Any,
    processor: Any,
    read: GateQuestions,
    shards: ShardedDataset,
    batch_size: int,
    progress: Progress,
    *,
    gate: bool,
) -> tuple[list[GateQuestion], Weights | None]:
    """Return the questions with a readable image, and their weights [n, N-1] or None."""
    questions: list[GateQuestion] = []
    rows: list[Any] = []
    done = progress("weights", len(read.questions))
    for batch in batches(with_images(shards, read.questions), batch_size):
        questions += [item.question for item in batch]
        if gate:
            rows.append(gate_weights(model, processor, batch).double().numpy())
        done(len(batch))
    if not questions:
        raise InputError(f"none of the pictures of {shards.location} can be read; write it again.")
    return questions, np.concatenate(rows) if rows else None


def _sweep(
    model: Any,
    processor: Any,
    questions: list[GateQuestion],
    shards: ShardedDataset,
    batch_size: int,
    progress: Progress,
    *,
    limit: int,
) -> list[SweepResult]:
    """Force every level on `limit` evenly spaced `questions`."""
    count = min(limit, len(questions))
    places = [at * len(questions) // count for at in range(count)]
    asked = with_images(shards, [questions[at] for at in places])
    done = progress("sweep", count)
    numbered = zip(places, asked, strict=True)
    return list(sweep_levels(model, processor, numbered, batch_size=batch_size, done=done))


def _shown(
    shards: ShardedDataset, questions: list[GateQuestion], weights: Weights | None
) -> dict[int, bytes]:
    """Return the encoded images of the rows in the report."""
    if weights is None:
        return {}
    places = {at for found in highest(questions, weights, EXAMPLES).values() for at, _ in found}
    return {questions[at].row: shards.row(questions[at].row).image or b"" for at in sorted(places)}


def _write(found: Measurements, folder: Path) -> None:
    """Write `folder` under a temporary name and rename it when complete."""
    summary = summary_of(found)
    with atomic.folder(folder, replace=True) as unfinished:
        pq.write_table(samples_table(found), unfinished / SAMPLES)
        (unfinished / REPORT).write_text(render_page(found, summary), encoding="utf-8")
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (unfinished / SUMMARY).write_text(text, encoding="utf-8")
