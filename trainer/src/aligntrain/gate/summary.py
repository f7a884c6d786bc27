"""Summaries of the measurements: means, entropy, correlations, as objects, JSON and a table."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aligntrain.data.dataset import ShardedDataset
from aligntrain.evaluate.intervals import (
    Correlation,
    Interval,
    mean_interval,
    pearson,
    share_interval,
    spearman,
)
from aligntrain.evaluate.short_answers import ALL
from aligntrain.gate.matrix import OwnLevel, loss_matrix
from aligntrain.gate.measure import SweepResult, Vector
from aligntrain.gate.questions import GateQuestion, GateQuestions
from aligntrain.model import AlignGPTConfig

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KindWeights:
    """Means over `count` questions of type `kind`: `weights` [N-1] of the local levels, their
    entropy in nats, and their mean level.
    """

    kind: str
    count: int
    weights: tuple[float, ...]
    entropy: float
    mean_level: Interval


@dataclass(frozen=True, slots=True)
class Setting:
    """Results of `count` questions of a type with the vector `level` (see `Vector`).

    Mean `loss` in nats per token, its mean paired difference from the own mix, and the share of
    right answers among questions with a short reference, None without any and for `mean`.
    """

    level: Vector
    count: int
    loss: float
    difference: Interval | None
    accuracy: Interval | None


@dataclass(frozen=True)
class GateReport:
    """Report in the folder `output` on the model in `checkpoint` over the dataset `shards`.

    `table` [N, D] holds the model's level vectors. `questions` are those of `read` with a readable
    image and `weights` [n, N-1] theirs, None without a gate (`without` is the reason). `swept`
    holds the results with forced levels, empty without a sweep.
    """

    output: Path
    checkpoint: Path
    config: AlignGPTConfig
    table: npt.NDArray[np.float64]
    shards: ShardedDataset
    read: GateQuestions
    questions: list[GateQuestion]
    weights: Weights | None
    swept: list[SweepResult]
    without: str | None

    @cached_property
    def kinds(self) -> list[KindWeights]:
        """Weights of all questions, then by type, the most frequent first; [] without weights."""
        if self.weights is None:
            return []
        weights, entropy, levels = self.weights, entropies(self.weights), mean_levels(self.weights)
        return [
            KindWeights(
                kind,
                len(at),
                tuple(weights[at].mean(axis=0).tolist()),
                float(entropy[at].mean()),
                mean_interval(levels[at].tolist()),
            )
            for kind, at in _groups([question.kind for question in self.questions]).items()
        ]

    @cached_property
    def correlations(self) -> dict[str, tuple[Correlation, Correlation]]:
        """Pearson's and Spearman's coefficients of the mean level with `score` and `level`."""
        found: dict[str, tuple[Correlation, Correlation]] = {}
        if self.weights is None:
            return found
        levels = mean_levels(self.weights)
        for name in ("score", "level"):
            values = values_of(self.questions, name)
            known = np.isfinite(values)
            if known.any():
                x, y = values[known], levels[known]
                found[name] = pearson(x, y), spearman(x, y)
        return found

    @cached_property
    def settings(self) -> dict[str, list[Setting]]:
        """Results of each setting for all questions of the sweep, then by type; {} without one."""
        groups = _groups([self.questions[one.number].kind for one in self.swept])
        return {kind: _settings([self.swept[place] for place in at]) for kind, at in groups.items()}

    @property
    def overall(self) -> list[Setting]:
        """Results of each setting for all questions of the sweep; [] without one."""
        return next(iter(self.settings.values()), [])

    @cached_property
    def matrix(self) -> list[OwnLevel]:
        """Losses of the sweep's pairs by own level, then by forced level; [] without levels."""
        return loss_matrix(self.questions, self.swept) if self.read.pairs else []


def entropies(weights: Weights) -> Weights:
    """Return the entropy [n] in nats of `weights` [n, N-1], from 0 (one level) to ln(N - 1)."""
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return -(weights * logs).sum(axis=1)


def mean_levels(weights: Weights) -> Weights:
    """Return the mean level [n] of `weights` [n, N-1] of the local levels 1..N-1."""
    return weights @ np.arange(1, weights.shape[1] + 1)


def values_of(questions: Sequence[GateQuestion], name: str) -> Weights:
    """Return the `score` or `level` [n] of `questions`, NaN for those without."""
    values = [getattr(question, name) for question in questions]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def favourite(weights: Weights) -> tuple[int, float]:
    """Return the local level most often highest in `weights` [n, N-1], and its share."""
    counts = np.bincount(weights.argmax(axis=1), minlength=weights.shape[1])
    level = int(counts.argmax())
    return level + 1, float(counts[level] / len(weights))


def highest(
    questions: Sequence[GateQuestion], weights: Weights, count: int
) -> dict[int, list[tuple[int, float]]]:
    """Return by local level the `count` highest weights with their questions' indices, the highest
    first, one question of each image.
    """
    found: dict[int, list[tuple[int, float]]] = {}
    for level in range(1, weights.shape[1] + 1):
        column, by_image = weights[:, level - 1], dict[str, tuple[int, float]]()
        for at in np.argsort(-column, kind="stable").tolist():
            image = questions[at].id.partition("#")[0]  # `ingest` adds # suffixes
            by_image.setdefault(image, (at, float(column[at])))
            if len(by_image) == count:
                break
        found[level] = list(by_image.values())
    return found


def summary_of(report: GateReport) -> dict[str, Any]:
    """Return all numbers of the report as plain JSON values."""
    config, read = report.config, report.read
    summary: dict[str, Any] = {
        "model": str(report.checkpoint.absolute()),
        "mixing": config.mixing,
        "levels": config.levels,
        "gate_text": config.gate_text,
        "without": report.without,
        "data": report.shards.location,
        "data_sha256": report.shards.digest,
        "rows": read.rows,
        "questions": len(report.questions),
        "pairs": read.pairs,
        "types_from": read.types_from,
        "left_out": {
            "without a picture": read.text_only,
            "without a question": read.unusable,
            "picture unread": len(read.questions) - len(report.questions),
        },
        "vectors": _vectors(report.table),
        "package": f"aligntrain {version('aligntrain')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if report.weights is not None:
        summary["entropy_of_no_preference"] = log(config.levels - 1)
        summary["types"] = [asdict(kind) for kind in report.kinds]
        summary["correlations"] = {
            name: {"pearson": asdict(r), "spearman": asdict(rho)}
            for name, (r, rho) in report.correlations.items()
        }
    if report.swept:
        types = {
            kind: [asdict(setting) for setting in settings]
            for kind, settings in report.settings.items()
        }
        summary["sweep"] = {"types": types, "matrix": [asdict(row) for row in report.matrix]}
    return summary


def samples_table(report: GateReport) -> pa.Table:
    """Return a row per question: its data, its weights and its results in the sweep."""
    fields = (
        ("id", "id", pa.string()), ("turn", "turn", pa.int32()), ("type", "kind", pa.string()),
        ("question", "question", pa.string()), ("reference", "answer", pa.string()),
        ("score", "score", pa.float32()), ("level", "level", pa.int8()),
    )  # fmt: skip
    columns: dict[str, Any] = {
        column: pa.array([getattr(question, name) for question in report.questions], kind)
        for column, name, kind in fields
    }
    if report.weights is not None:
        columns["gate_weights"] = pa.array(report.weights.tolist(), pa.list_(pa.float32()))
        columns["mean_level"] = pa.array(mean_levels(report.weights), pa.float32())
        columns["gate_entropy"] = pa.array(entropies(report.weights), pa.float32())
    swept = {one.number: one for one in report.swept}
    ordered = [swept.get(number) for number in range(len(report.questions))]
    if report.swept:
        columns["tokens"] = pa.array([one and one.tokens for one in ordered], pa.int32())
    for setting in report.swept[0].losses if report.swept else ():
        name = "own" if setting is None else f"level_{setting}"
        for what, kind in (("losses", pa.float32()), ("said", pa.string()), ("right", pa.bool_())):
            values = [one and getattr(one, what).get(setting) for one in ordered]
            columns[f"{what.removesuffix('es')}_{name}"] = pa.array(values, kind)
    return pa.table(columns)


def _settings(swept: Sequence[SweepResult]) -> list[Setting]:
    found: list[Setting] = []
    for level in swept[0].losses:
        losses = [one.losses[level] for one in swept]
        right = [one.right[level] for one in swept if level in one.right]
        differences = [one.losses[level] - one.losses[None] for one in swept]
        found.append(
            Setting(
                level,
                len(swept),
                float(np.mean(losses)),
                None if level is None else mean_interval(differences),
                share_interval(sum(right), len(right)) if right else None,
            )
        )
    return found


def _groups(kinds: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Return the indices of each of `kinds`: all, then levels in order, types by frequency."""
    counted = Counter(kinds)
    names = sorted(counted, key=lambda name: (-counted[name], name))
    if all(re.fullmatch(r"level \d+", name) for name in names):
        names.sort(key=lambda name: int(name.split()[1]))
    array = np.array(kinds, dtype=object)
    everything = {ALL: np.arange(len(kinds))} if len(names) > 1 else {}
    return everything | {name: np.flatnonzero(array == name) for name in names}


def _vectors(table: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the lengths of the N rows of `table` and their pairwise cosines [N][N]."""
    lengths = np.linalg.norm(table, axis=1)
    unit = table / np.maximum(lengths, 1e-12)[:, None]
    return {"length": lengths.tolist(), "cosine": (unit @ unit.T).tolist()}
