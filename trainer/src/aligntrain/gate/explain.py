"""`aligntrain gate`: report on a model's gate over a dataset, as a page and as data."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from alignshared import Dataset, InputError, atomic
from aligntrain.data.dataset import ShardedDataset
from aligntrain.evaluate.short_answers import evenly
from aligntrain.gate.measure import SweepResult, batches, gate_weights, sweep_levels, with_images
from aligntrain.gate.questions import GateQuestion, read_gate_questions
from aligntrain.gate.report import render_page
from aligntrain.gate.summary import GateReport, samples_table, summary_of
from aligntrain.inference.load import beside_model, load_for_inference
from aligntrain.model import AlignGPTConfig
from aligntrain.runs.folder import GATE, GATE_SUMMARY

REPORT = "report.html"
SAMPLES = "gate.parquet"

Progress = Callable[[str, int], Callable[[int], None]]
"""Called with a task and its number of questions; returns a callback for those done."""


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
    model, processor = load_for_inference(checkpoint, device=device)
    without = _without(model.config, processor.template, sweep=sweep)
    shards = ShardedDataset(data, conversations="caption" not in Dataset(data).schema.names)
    # Of the templates, only the tokenizer's own has a place for a row's system message.
    read = read_gate_questions(shards, by=by, limit=limit, system=processor.template == "chat")
    if processor.template == "plain" and not read.pairs:
        raise InputError(
            f"{checkpoint} is only pretrained, so it reads no questions, and {data} holds "
            "conversations; give pairs, or a fine-tuned model."
        )
    questions: list[GateQuestion] = []
    weights: list[npt.NDArray[np.float64]] = []
    done = progress("weights", len(read.questions))
    for batch in batches(with_images(shards, read.questions), batch_size):
        questions += [item.question for item in batch]
        if without is None:
            weights.append(gate_weights(model, processor, batch).double().numpy())
        done(len(batch))
    if not questions:
        raise InputError(f"none of the images of {shards.location} can be read; write it again.")
    swept: list[SweepResult] = []
    if sweep:
        places = evenly(range(len(questions)), sweep_limit)
        asked = with_images(shards, [questions[place] for place in places])
        numbered, done = zip(places, asked, strict=True), progress("sweep", len(places))
        swept += sweep_levels(model, processor, numbered, batch_size=batch_size, done=done)
    together = np.concatenate(weights) if weights else None
    assert model.model.alignment is not None  # there are level vectors
    report = GateReport(
        folder,
        Path(checkpoint),
        model.config,
        model.model.alignment.table.detach().double().cpu().numpy(),
        shards,
        read,
        questions,
        together,
        swept,
        without,
    )
    _write(report)
    return report


def _output(checkpoint: str | Path, output: str | Path | None) -> Path:
    folder = beside_model(checkpoint, GATE) if output is None else Path(output)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / GATE_SUMMARY).is_file():
        raise InputError(
            f"{folder} holds something else than a report on a gate; give another --output."
        )
    return folder


def _without(config: AlignGPTConfig, template: str, *, sweep: bool) -> str | None:
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
    elif template == "plain":
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


def _write(report: GateReport) -> None:
    """Write the report's folder under a temporary name and rename it when complete."""
    summary = summary_of(report)
    with atomic.folder(report.output, replace=True) as unfinished:
        pq.write_table(samples_table(report), unfinished / SAMPLES)
        (unfinished / REPORT).write_text(render_page(report, summary), encoding="utf-8")
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (unfinished / GATE_SUMMARY).write_text(text, encoding="utf-8")
