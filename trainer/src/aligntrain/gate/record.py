"""What was measured as data: `gate.json`, the summary, and `gate.parquet`, every question."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from math import log
from typing import Any

import numpy as np
import pyarrow as pa

from aligntrain.gate.findings import Findings
from aligntrain.gate.summary import (
    by_kind,
    correlations,
    entropies,
    mean_levels,
    settings_by_kind,
)


def summary_of(found: Findings) -> dict[str, Any]:
    """All numbers of the report; plain values, as JSON holds them."""
    config, read = found.model.config, found.read
    summary: dict[str, Any] = {
        "model": str(found.checkpoint.absolute()),
        "mixing": config.mixing,
        "levels": config.levels,
        "gate_text": config.gate_text,
        "without": found.without,
        "data": found.dataset.location,
        "data_sha256": found.dataset.digest,
        "rows": read.rows,
        "questions": len(found.cases),
        "pairs": read.pairs,
        "types_from": read.kinds_from,
        "left_out": {
            "without a picture": read.text_only,
            "without a question": read.unusable,
            "picture unread": len(read.cases) - len(found.cases),
        },
        "vectors": vectors_of(found.model),
        "package": f"aligntrain {version('aligntrain')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if found.weights is not None:
        summary["entropy_of_no_preference"] = log(config.levels - 1)
        summary["types"] = [asdict(kind) for kind in by_kind(found.cases, found.weights)]
        summary["correlations"] = {
            name: {"pearson": asdict(r), "spearman": asdict(rho)}
            for name, (r, rho) in correlations(found.cases, found.weights).items()
        }
    if found.swept:
        summary["sweep"] = {
            kind: [asdict(setting) for setting in settings]
            for kind, settings in settings_by_kind(found.cases, found.swept).items()
        }
    return summary


def vectors_of(model: Any) -> dict[str, Any]:
    """Lengths of the N level vectors, and the cosine of each two of them [N][N]."""
    table = model.model.alignment.table.detach().double().cpu().numpy()
    lengths = np.linalg.norm(table, axis=1)
    unit = table / np.maximum(lengths, 1e-12)[:, None]
    return {"length": lengths.tolist(), "cosine": (unit @ unit.T).tolist()}


def samples_table(found: Findings) -> pa.Table:
    """A row for each question: what it is, its weights, and what became of it in the sweep."""
    cases = found.cases
    columns: dict[str, Any] = {
        "id": pa.array([case.id for case in cases], pa.string()),
        "turn": pa.array([case.turn for case in cases], pa.int32()),
        "type": pa.array([case.kind for case in cases], pa.string()),
        "question": pa.array([case.question for case in cases], pa.string()),
        "reference": pa.array([case.answer for case in cases], pa.string()),
        "score": pa.array([case.score for case in cases], pa.float32()),
        "level": pa.array([case.level for case in cases], pa.int8()),
    }
    if found.weights is not None:
        weights = found.weights
        columns["gate_weights"] = pa.array(weights.tolist(), pa.list_(pa.float32()))
        columns["mean_level"] = pa.array(mean_levels(weights), pa.float32())
        columns["gate_entropy"] = pa.array(entropies(weights), pa.float32())
    if found.swept:
        swept = {one.number: one for one in found.swept}
        for setting in found.swept[0].losses:
            name = "own" if setting is None else f"level_{setting}"
            ordered = [swept.get(number) for number in range(len(cases))]
            columns[f"loss_{name}"] = pa.array(
                [one and one.losses[setting] for one in ordered], pa.float32()
            )
            columns[f"said_{name}"] = pa.array(
                [one and one.said.get(setting) for one in ordered], pa.string()
            )
            columns[f"right_{name}"] = pa.array(
                [one and one.right.get(setting) for one in ordered], pa.bool_()
            )
    return pa.table(columns)
