"""`aligntrain gate`: what the gate of a model does on a dataset, as a report and as data."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from alignshared import Dataset, InputError, atomic
from aligntrain.data.dataset import Shards
from aligntrain.gate.measure import Swept, batches, gate_weights, sweep_levels, with_pictures
from aligntrain.gate.questions import Case, Cases, read_cases
from aligntrain.gate.report import EXAMPLES, render_page, samples_table, summary_of
from aligntrain.gate.summary import (
    Findings,
    KindWeights,
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
"""The folder of a report that nobody has named, in that of the model."""

Progress = Callable[[str, int], Callable[[int], None]]
"""Called with what begins and how many cases it has; gives what hears of those that are done."""


@dataclass(frozen=True, slots=True)
class GateReport:
    """Where the report lies, and its numbers in short; `without` says what the model has not."""

    output: Path
    questions: int
    kinds: list[KindWeights]
    swept: list[Setting]
    without: str | None


def explain_gate(  # noqa: PLR0913 - what a report can be told
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
        data: a dataset with conversations, or pairs, of which the gate reads the captions.
        output: folder of the report; by default `gate` in the folder of the model.
        limit: questions at most, spread over the dataset; None for all.
        batch_size: prompts at once; the weights do not depend on it but for rounding.
        by: the column that tells the questions' types.
        sweep: whether every level is forced on `sweep_limit` of the questions as well.
        sweep_limit: questions of the sweep, spread over the others.
        device: where; by default a GPU if there is one.
        progress: hears what goes on.

    Raises:
        InputError: the model or the data cannot be used, the model has nothing to report on, or
            something else lies in `output`.
    """
    if batch_size < 1 or sweep_limit < 1:
        raise InputError(
            f"--batch-size {batch_size} or --sweep-limit {sweep_limit} cannot be: give 1 or more."
        )
    folder = _output(checkpoint, output)
    model, processor = _load(checkpoint, device)
    without = _without(model.config, processor, sweep=sweep)
    shards = Shards(data, conversations="caption" not in Dataset(data).schema.names)
    # Of the templates, only the tokenizer's own has a place for a row's system message.
    read = read_cases(shards, by=by, limit=limit, system=processor.template == "chat")
    if processor.template == "plain" and not read.pairs:
        raise InputError(
            f"{checkpoint} is pretrained and no more, so it reads no questions, and {data} holds "
            "conversations; give pairs, or a fine-tuned model."
        )
    parts = (shards, batch_size, progress)
    cases, weights = _measure(model, processor, read, *parts, gate=without is None)
    swept: list[Swept] = []
    if sweep:
        swept = _sweep(model, processor, cases, *parts, limit=sweep_limit)
    pictures = _shown(shards, cases, weights)
    found = Findings(
        Path(checkpoint), model, shards.dataset, read, cases, weights, swept, pictures, without
    )
    _write(found, folder)
    kinds = [] if weights is None else by_kind(cases, weights)
    settings = settings_by_kind(cases, swept) if swept else {}
    return GateReport(folder, len(cases), kinds, next(iter(settings.values()), []), without)


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
    """What stands against weights of a gate, None if nothing does.

    Raises:
        InputError: then there is nothing at all to report on.
    """
    if not config.has_table:
        raise InputError(
            "the model is plain LLaVA (mixing none): it has neither level vectors nor a gate, so "
            "there is nothing to report; give a model of another mixing."
        )
    if not config.has_gate:
        top = "the top level's vector"
        mix = top if config.mixing == "global" else f"{top} and the mean of the others"
        reason = f"the model has mixing {config.mixing} and no gate: every picture gets {mix}"
    elif processor.template == "plain":
        reason = (
            "the model is pretrained and no more: its gate is as it was drawn at random and learns "
            "in fine-tuning"
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
    read: Cases,
    shards: Shards,
    batch_size: int,
    progress: Progress,
    *,
    gate: bool,
) -> tuple[list[Case], Weights | None]:
    """The cases whose picture can be read, and their weights [n, N-1] if there is a `gate`."""
    unread: list[Case] = []
    cases: list[Case] = []
    rows: list[Any] = []
    done = progress("weights", len(read.cases))
    for batch in batches(with_pictures(shards, read.cases, unread), batch_size):
        cases += [one.case for one in batch]
        if gate:
            rows.append(gate_weights(model, processor, batch).double().numpy())
        done(len(batch))
    if not cases:
        raise InputError(f"none of the pictures of {shards.location} can be read; write it again.")
    return cases, np.concatenate(rows) if rows else None


def _sweep(
    model: Any,
    processor: Any,
    cases: list[Case],
    shards: Shards,
    batch_size: int,
    progress: Progress,
    *,
    limit: int,
) -> list[Swept]:
    """Every level forced on `limit` of `cases`, at equal distances."""
    count = min(limit, len(cases))
    places = [at * len(cases) // count for at in range(count)]
    asked = with_pictures(shards, [cases[at] for at in places], [])
    done = progress("sweep", count)
    numbered = zip(places, asked, strict=True)
    return list(sweep_levels(model, processor, numbered, batch_size=batch_size, done=done))


def _shown(shards: Shards, cases: list[Case], weights: Weights | None) -> dict[int, bytes]:
    """Pictures of the rows that the report shows."""
    if weights is None:
        return {}
    places = {at for found in highest(cases, weights, EXAMPLES).values() for at, _ in found}
    return {cases[at].row: shards.row(cases[at].row).image or b"" for at in sorted(places)}


def _write(found: Findings, folder: Path) -> None:
    """Fill `folder`, under another name until it is whole."""
    summary = summary_of(found)
    with atomic.folder(folder, replace=True) as unfinished:
        pq.write_table(samples_table(found), unfinished / SAMPLES)
        (unfinished / REPORT).write_text(render_page(found, summary), encoding="utf-8")
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (unfinished / SUMMARY).write_text(text, encoding="utf-8")
