"""All that a report on a gate is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignshared import Dataset
from aligntrain.gate.questions import Case, Cases
from aligntrain.gate.summary import Weights
from aligntrain.gate.sweep import Swept


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured of `model`, which lies in `checkpoint`, on `dataset`.

    `cases` are those of `read` whose picture can be read, `weights` [n, N-1] theirs, None where
    there is no gate, of which `without` then tells. `swept` are those that levels were forced on,
    none without a sweep; `pictures` are encoded ones, by row, of the cases to show.
    """

    checkpoint: Path
    model: Any
    dataset: Dataset
    read: Cases
    cases: list[Case]
    weights: Weights | None
    swept: list[Swept]
    pictures: dict[int, bytes]
    without: str | None
