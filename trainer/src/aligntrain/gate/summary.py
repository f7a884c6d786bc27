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
"""The name of the row for questions of every type."""

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KindWeights:
    """Of `count` questions of the type `kind`: the mean `weights` [N-1] of the local levels, the
    mean of their entropy in nats, and of their mean level.
    """

    kind: str
    count: int
    weights: tuple[float, ...]
    entropy: float
    mean_level: Interval


@dataclass(frozen=True, slots=True)
class Setting:
    """What `count` questions of a type came to with `level` forced, or None with the model's own
    mix: the mean `loss` in nats a token, its mean difference from that of the own mix, question by
    question, and the share of right answers of those with a short reference, None without any.
    """

    level: int | None
    count: int
    loss: float
    difference: Interval | None
    accuracy: Interval | None


def entropies(weights: Weights) -> Weights:
    """Entropy [n] in nats of `weights` [n, N-1]; ln(N - 1) is no preference, 0 a single level."""
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return -(weights * logs).sum(axis=1)


def mean_levels(weights: Weights) -> Weights:
    """Mean level [n] of `weights` [n, N-1] of the local levels 1..N-1."""
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
    """Pearson's and Spearman's coefficient of the weights' mean level with `score` and `level`,
    whichever the questions have.
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
    """The local level that has the highest of `weights` [n, N-1] most often, and in what share."""
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
            image = questions[at].id.partition("#")[0]  # `ingest` tells records on one apart so
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
    """Places of each of `kinds`, all of them first, then levels in their order and types by how
    often they occur.
    """
    counted = Counter(kinds)
    names = sorted(counted, key=lambda name: (-counted[name], name))
    if all(re.fullmatch(r"level \d+", name) for name in names):
        names.sort(key=lambda name: int(name.split()[1]))
    array = np.array(kinds, dtype=object)
    everything = {ALL: np.arange(len(kinds))} if len(names) != 1 else {}
    return everything | {name: np.flatnonzero(array == name) for name in names}


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured of `model`, which lies in `checkpoint`, on `dataset`.

    `questions` are those of `read` whose image can be read, `weights` [n, N-1] theirs, None where
    there is no gate, of which `without` then tells. `swept` are those that levels were forced on,
    none without a sweep; `pictures` are encoded ones, by row, of the questions to show.
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
