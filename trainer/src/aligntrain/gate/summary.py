"""Summaries of the weights of many questions: means, entropy, correlations."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignshared import Dataset
from aligntrain.evaluate.intervals import (
    Correlation,
    Interval,
    mean_interval,
    pearson,
    share_interval,
    spearman,
)
from aligntrain.gate.measure import SweepResult
from aligntrain.gate.questions import GateQuestion, GateQuestions

ALL = "all"
"""Name of the row for questions of every type."""

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
    """Results of `count` questions of a type with `level` forced, or None for the model's own mix.

    Mean `loss` in nats per token, its mean paired difference from the own mix, and the share of
    right answers among questions with a short reference, None without any.
    """

    level: int | None
    count: int
    loss: float
    difference: Interval | None
    accuracy: Interval | None


def entropies(weights: Weights) -> Weights:
    """Return the entropy [n] in nats of `weights` [n, N-1], from 0 (one level) to ln(N - 1)."""
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return -(weights * logs).sum(axis=1)


def mean_levels(weights: Weights) -> Weights:
    """Return the mean level [n] of `weights` [n, N-1] of the local levels 1..N-1."""
    return weights @ np.arange(1, weights.shape[1] + 1)


def by_kind(questions: Sequence[GateQuestion], weights: Weights) -> list[KindWeights]:
    """Summarize `weights` [n, N-1] of all `questions`, then by type, the most frequent first."""
    entropy, levels = entropies(weights), mean_levels(weights)
    return [
        KindWeights(
            kind,
            len(at),
            tuple(weights[at].mean(axis=0).tolist()),
            float(entropy[at].mean()),
            mean_interval(levels[at].tolist()),
        )
        for kind, at in _groups([question.kind for question in questions]).items()
    ]


def correlations(
    questions: Sequence[GateQuestion], weights: Weights
) -> dict[str, tuple[Correlation, Correlation]]:
    """Return Pearson's and Spearman's coefficients of the weights' mean level with `score` and
    `level`, if the questions have them.
    """
    levels = mean_levels(weights)
    found: dict[str, tuple[Correlation, Correlation]] = {}
    for name in ("score", "level"):
        values = np.array(
            [np.nan if (v := getattr(question, name)) is None else v for question in questions],
            dtype=np.float64,
        )
        known = np.isfinite(values)
        if known.any():
            x, y = values[known], levels[known]
            found[name] = pearson(x, y), spearman(x, y)
    return found


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
        column, seen = weights[:, level - 1], set[str]()
        found[level] = []
        for at in np.argsort(-column, kind="stable").tolist():
            image = questions[at].id.partition("#")[0]  # `ingest` adds # suffixes
            if image not in seen:
                seen.add(image)
                found[level].append((at, float(column[at])))
            if len(found[level]) == count:
                break
    return found


def settings_by_kind(
    questions: Sequence[GateQuestion], swept: Sequence[SweepResult]
) -> dict[str, list[Setting]]:
    """Summarize each setting for all of `swept` and by type of their `questions`."""
    groups = _groups([questions[one.number].kind for one in swept])
    return {kind: _settings([swept[place] for place in at]) for kind, at in groups.items()}


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
    everything = {ALL: np.arange(len(kinds))} if len(names) != 1 else {}
    return everything | {name: np.flatnonzero(array == name) for name in names}


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measurements of `model`, in the folder `checkpoint`, on `dataset`.

    `questions` are those of `read` with a readable image and `weights` [n, N-1] theirs, None
    without a gate (`without` is the reason). `swept` holds the results with forced levels, empty
    without a sweep; `pictures` the encoded images to show, by row.
    """

    checkpoint: Path
    model: Any
    dataset: Dataset
    read: GateQuestions
    questions: list[GateQuestion]
    weights: Weights | None
    swept: list[SweepResult]
    pictures: dict[int, bytes]
    without: str | None
