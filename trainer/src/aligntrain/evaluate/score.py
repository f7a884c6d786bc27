"""What every scorer takes and gives. Scorers are pure: they read what was written down when the
question was answered, and nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]
"""One answered question: `text`, the answer, and `facts`, what its scorer needs of the data."""


@dataclass(frozen=True, slots=True)
class Score:
    """A benchmark's outcome.

    `value` is the headline in the paper's unit, None where there is none to give; `details` are
    named numbers beside it; `points` is what each record got, None where it was not scored;
    `notes` are sentences about what is missing.
    """

    value: float | None
    points: list[Any]
    details: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])


def percent(points: Iterable[float]) -> float | None:
    """The mean of `points` in percent, None where there are none."""
    given = list(points)
    return 100 * sum(given) / len(given) if given else None


def grouped(records: Sequence[Record], *keys: str) -> dict[tuple[Any, ...], list[int]]:
    """The places of `records` by their facts `keys`, in the order they came."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault(tuple(record["facts"][key] for key in keys), []).append(place)
    return groups
