"""Problems of a dataset: one sentence each, the first few of a kind and a count."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

LISTED_PER_KIND = 5


class Kind(StrEnum):
    """The contract promise that is broken."""

    FILES = "files"
    COLUMNS = "columns"
    ROWS = "rows"
    IDS = "ids"
    SCORES = "scores"
    LEVELS = "levels"
    REJECTS = "rejects"
    DUPLICATES = "duplicates"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: what, where and, unless obvious, what to do.

    Rows in `text` count from 0.
    """

    kind: Kind
    text: str

    def __str__(self) -> str:
        return self.text


def written_wrongly(kind: Kind, what: str) -> Problem:
    """Problem for a fault that only writing the dataset again mends."""
    return Problem(kind, f"{what}; write the dataset again.")


class ProblemList:
    """Keeps the first `LISTED_PER_KIND` problems of each kind and counts the others."""

    def __init__(self) -> None:
        self._listed: list[Problem] = []
        self._counts: Counter[Kind] = Counter()

    def add(self, problems: Iterable[Problem]) -> None:
        """Add `problems` in listing order."""
        for problem in problems:
            self._counts[problem.kind] += 1
            if self._counts[problem.kind] <= LISTED_PER_KIND:
                self._listed.append(problem)

    @property
    def count(self) -> int:
        """Number of problems, listed or not."""
        return self._counts.total()

    def listed(self) -> list[Problem]:
        """Problems by kind; the last of a kind gives the number left out."""
        problems: list[Problem] = []
        for kind in Kind:
            problems += [problem for problem in self._listed if problem.kind is kind]
            more = self._counts[kind] - LISTED_PER_KIND
            if more > 0:
                problems.append(Problem(kind, f"and {more:,} more such problems with {kind}."))
        return problems
