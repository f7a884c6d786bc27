"""Outcomes beside what was published, and whether the two can be compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntrain.evaluate.benchmarks import BENCHMARKS, Benchmark
from aligntrain.runs.files import write_whole

TABLE = "table.md"
HEADINGS = (
    "benchmark", "metric", "questions", "score", "LLaVA-1.5-7B", "AlignGPT-7B", "reruns differ by",
    "comparable",
)  # fmt: skip
NO_SCORE = "no score"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One benchmark's: `result` is what its `result.json` holds."""

    benchmark: Benchmark
    result: dict[str, Any]

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Outcome":
        """That which `result.json` holds."""
        return cls(BENCHMARKS[result["benchmark"]], result)

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table, as `HEADINGS` names its cells."""
        benchmark, published = self.benchmark, self.benchmark.published
        return (
            benchmark.title,
            benchmark.metric,
            f"{self.result['questions']:,}",
            "–" if self.result["score"] is None else f"{self.result['score']:.1f}",
            "–" if published is None else f"{published.llava:.1f}",
            "–" if published is None else f"{published.aligngpt:.1f}",
            "–" if published is None or not published.noise else published.noise,
            self.result["comparable"],
        )


def comparable(benchmark: Benchmark, result: dict[str, Any]) -> str:
    """Whether `result` stands for the same as the published values: yes, nearly or no, and why."""
    published, questions = benchmark.published, result["questions"]
    if result["score"] is None:
        return NO_SCORE
    if benchmark.not_comparable or published is None:
        return f"no: {benchmark.not_comparable}"
    if result["limit"] is not None:
        return f"no: the first {questions:,} questions"
    if result["max_new_tokens"] != benchmark.max_new_tokens:
        return f"no: answers of at most {result['max_new_tokens']:,} tokens"
    if questions == published.questions:
        return "yes"
    if benchmark.edition is not None and questions == benchmark.edition[0]:
        return f"nearly: {benchmark.edition[1]}"
    return f"no: {questions:,} of {published.questions:,} questions"


def write_table(outcomes: list[Outcome], file: Path) -> None:
    """The table in Markdown, with the notes under it."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(one.cells for one in outcomes)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [
        f"- {one.benchmark.title}: {note}." for one in outcomes for note in one.result["notes"]
    ]
    write_whole(file, "\n".join([*lines, "", *notes]).rstrip() + "\n")
