"""Problems of a dataset: one sentence each; of many alike the first few and a count."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

LISTED_PER_KIND = 5


class Kind(StrEnum):
    """The promise of the contract that is broken."""

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
    """One problem: what, where and, where that is not plain, what to do.

    Rows in `text` count from 0.
    """

    kind: Kind
    text: str

    def __str__(self) -> str:
        return self.text


class ProblemList:
    """Keeps the first `LISTED_PER_KIND` problems of each kind and counts the others."""

    def __init__(self) -> None:
        self._listed: list[Problem] = []
        self._counts: Counter[Kind] = Counter()

    def add(self, problems: Iterable[Problem]) -> None:
        """Add `problems`, in the order in which they are to be listed."""
        for problem in problems:
            self._counts[problem.kind] += 1
            if self._counts[problem.kind] <= LISTED_PER_KIND:
                self._listed.append(problem)

    @property
    def count(self) -> int:
        """Number of problems, listed or not."""
        return self._counts.total()

    def listed(self) -> list[Problem]:
        """The problems by kind; the last of a kind tells how many more there are."""
        problems: list[Problem] = []
        for kind in Kind:
            problems += [problem for problem in self._listed if problem.kind is kind]
            more = self._counts[kind] - LISTED_PER_KIND
            if more > 0:
                problems.append(Problem(kind, f"and {more:,} more such problems with {kind}."))
        return problems
