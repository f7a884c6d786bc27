"""The paper's twelve benchmarks and two validation splits: data, protocol, scorer, known values.

Published values: AlignGPT's README and LLaVA's model zoo, 7B; SEED-Bench on its images alone, from
LLaVA-1.5's paper. `noise` is the spread seen between reruns of a recipe or of the same weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignshared import InputError
from aligntrain.evaluate import prompts, scorers
from aligntrain.evaluate.prompts import Row
from aligntrain.evaluate.scorers import Record, Score

LOADER_TOKENS, RUNNER_TOKENS = 128, 1024
"""Answer limits, in tokens, of LLaVA's two kinds of evaluation scripts."""


@dataclass(frozen=True, slots=True)
class Published:
    """Published values in the unit of the headline, and their number of questions."""

    llava: float
    aligngpt: float
    questions: int
    noise: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark: data, prompt and scorer.

    `hub`, `config` and `split` name the data on the Hub, `columns` its required columns beside
    `image`. `facts` extracts the scorer's inputs from a row, `unit` keys rows scored together,
    `rows` filters rows. `score` is None if only a server knows the answers, or a judge grades them
    (`judged`). `edition` is another known number of questions, with a remark.
    """

    name: str
    title: str
    hub: str
    split: str
    columns: tuple[str, ...]
    prompt: Callable[[Row], str]
    facts: Callable[[Row], dict[str, Any]]
    metric: str
    score: Callable[[Sequence[Record]], Score] | None = None
    config: str | None = None
    max_new_tokens: int = LOADER_TOKENS
    judged: bool = False
    unit: Callable[[Row], Any] | None = None
    rows: Callable[[Row], bool] | None = None
    published: Published | None = None
    not_comparable: str = ""
    edition: tuple[int, str] | None = None


def _open_answer(row: Row) -> dict[str, Any]:
    answers = [item["answer"] if isinstance(item, dict) else item for item in row["answers"] or []]
    return {"id": row["question_id"], "answers": answers}


def _unanswered(row: Row) -> dict[str, Any]:
    return {"id": row["question_id"]}


def _science(row: Row) -> dict[str, Any]:
    return {"answer": "ABCDEFGHIJ"[row["answer"]], "options": len(row["choices"])}


def _pope(row: Row) -> dict[str, Any]:
    return {"id": row["question_id"], "answer": row["answer"], "split": row["category"]}


def _mme(row: Row) -> dict[str, Any]:
    image, category = row["question_id"], row["category"]
    return {"picture": image, "category": category, "answer": row["answer"]}


def _mmbench(row: Row) -> dict[str, Any]:
    options, kind = prompts.mmbench_options(row), row["category"]
    index = int(row["index"])
    return {"index": index, "answer": row["answer"], "options": options, "kind": kind}


def _seed(row: Row) -> dict[str, Any]:
    kind = f"question type {row.get('question_type_id', '?')}"
    return {"id": row["question_id"], "answer": row["answer"], "kind": kind}


def _llava_bench(row: Row) -> dict[str, Any]:
    names = ("question_id", "question", "caption", "gpt_answer", "category")
    facts = {name: row[name] for name in names}
    return {**facts, "id": facts.pop("question_id")}


def _mm_vet(row: Row) -> dict[str, Any]:
    names = ("question_id", "question", "answer", "capability")
    facts = {name: row[name] for name in names}
    return {**facts, "id": facts.pop("question_id")}


_OPEN = ("question_id", "question", "answers")
_MMBENCH: dict[str, Any] = {
    "hub": "lmms-lab-encoder/MMBench",
    "split": "dev",
    "columns": ("index", "question", "hint", "A", "B", "answer", "category"),
    "facts": _mmbench,
    "metric": "circular accuracy",
    "score": scorers.score_circular,
    "max_new_tokens": RUNNER_TOKENS,
    "unit": lambda row: int(row["index"]) % scorers.ROTATION,
}
_JUDGED: dict[str, Any] = {
    "judged": True,
    "max_new_tokens": RUNNER_TOKENS,
    "not_comparable": "another judge than the paper's",
}

_ALL = (
    Benchmark(
        name="vqav2",
        title="VQAv2 test-dev",
        hub="lmms-lab-encoder/VQAv2",
        split="testdev",
        columns=("question_id", "question"),
        prompt=prompts.short,
        facts=_unanswered,
        metric="VQA accuracy",
        published=Published(78.5, 79.1, 107_394),
    ),
    Benchmark(
        name="vqav2-val",
        title="VQAv2 val",
        hub="lmms-lab-encoder/VQAv2",
        split="validation",
        columns=_OPEN,
        prompt=prompts.short,
        facts=_open_answer,
        metric="VQA accuracy",
        score=scorers.score_vqa,
        not_comparable="the paper's is of test-dev",
    ),
    Benchmark(
        name="gqa",
        title="GQA",
        hub="lmms-lab-encoder/GQA",
        config="testdev_balanced_instructions",
        split="testdev",
        columns=("id", "question", "answer"),
        prompt=prompts.short,
        facts=lambda row: {"id": row["id"], "answer": row["answer"]},
        metric="exact match",
        score=scorers.score_exact,
        published=Published(62.0, 62.9, 12_578),
    ),
    Benchmark(
        name="vizwiz",
        title="VizWiz test",
        hub="lmms-lab-encoder/VizWiz-VQA",
        split="test",
        columns=("question_id", "question"),
        prompt=prompts.vizwiz,
        facts=_unanswered,
        metric="VQA accuracy",
        published=Published(50.0, 54.2, 8_000),
    ),
    Benchmark(
        name="vizwiz-val",
        title="VizWiz val",
        hub="lmms-lab-encoder/VizWiz-VQA",
        split="val",
        columns=_OPEN,
        prompt=prompts.vizwiz,
        facts=_open_answer,
        metric="VQA accuracy",
        score=scorers.score_vqa,
        not_comparable="the paper's is of the test split",
    ),
    Benchmark(
        name="scienceqa",
        title="ScienceQA-IMG",
        hub="lmms-lab-encoder/ScienceQA",
        config="ScienceQA-IMG",
        split="test",
        columns=("question", "choices", "answer", "hint"),
        prompt=prompts.science,
        facts=_science,
        metric="accuracy",
        score=scorers.score_science,
        max_new_tokens=RUNNER_TOKENS,
        published=Published(66.8, 68.5, 2_017, "66.8 to 69.5 from the same weights"),
    ),
    Benchmark(
        name="textvqa",
        title="TextVQA val",
        hub="lmms-lab-encoder/textvqa",
        split="validation",
        columns=(*_OPEN, "ocr_tokens"),
        prompt=prompts.textvqa,
        facts=_open_answer,
        metric="VQA accuracy",
        score=scorers.score_vqa,
        published=Published(58.2, 58.4, 5_000),
    ),
    Benchmark(
        name="pope",
        title="POPE",
        hub="lmms-lab-encoder/POPE",
        split="test",
        columns=("question_id", "question", "answer", "category"),
        prompt=prompts.short,
        facts=_pope,
        metric="mean of 3 F1",
        score=scorers.score_pope,
        published=Published(85.9, 86.0, 8_910),
        edition=(9_000, "9,000 questions, the paper's run had 8,910"),
    ),
    Benchmark(
        name="mme",
        title="MME perception",
        hub="lmms-lab-encoder/MME",
        split="test",
        columns=("question_id", "category", "question", "answer"),
        prompt=prompts.mme,
        facts=_mme,
        metric="sum of 10, max 2000",
        score=scorers.score_mme,
        unit=lambda row: (row["category"], row["question_id"]),
        published=Published(1510.7, 1527.4, 2_374, "±20 from run to run"),
    ),
    Benchmark(
        name="mmbench",
        title="MMBench dev",
        config="en",
        prompt=prompts.mmbench,
        published=Published(64.3, 67.3, 4_377),
        edition=(4_329, "an edition of 4,329 rows, the paper's had 4,377"),
        **_MMBENCH,
    ),
    Benchmark(
        name="mmbench-cn",
        title="MMBench-CN dev",
        config="cn",
        prompt=prompts.mmbench_cn,
        published=Published(58.3, 59.9, 4_329),
        **_MMBENCH,
    ),
    Benchmark(
        name="seed",
        title="SEED-Bench image",
        hub="lmms-lab-encoder/SEED-Bench",
        split="test",
        columns=(
            "question_id", "question", "choice_a", "choice_b", "choice_c", "choice_d", "answer",
            "data_type",
        ),
        prompt=prompts.seed,
        facts=_seed,
        metric="accuracy",
        score=scorers.score_letter,
        rows=lambda row: row["data_type"] == "image",
        published=Published(66.2, 66.5, 14_233),
    ),
    Benchmark(
        name="llava-bench",
        title="LLaVA-Bench (Wild)",
        hub="lmms-lab-encoder/llava-bench-in-the-wild",
        split="train",
        columns=("question_id", "question", "caption", "gpt_answer", "category"),
        prompt=prompts.bare,
        facts=_llava_bench,
        metric="% of the reference",
        published=Published(65.4, 68.4, 60),
        **_JUDGED,
    ),
    Benchmark(
        name="mm-vet",
        title="MM-Vet",
        hub="lmms-lab-encoder/MMVet",
        split="test",
        columns=("question_id", "question", "answer", "capability"),
        prompt=prompts.bare,
        facts=_mm_vet,
        metric="mean grade ×100",
        published=Published(31.1, 30.8, 218, "31.1 became 27.9 under a later judge"),
        **_JUDGED,
    ),
)  # fmt: skip

BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
PAPER = tuple(name for name in BENCHMARKS if not name.endswith("-val"))
"""The paper's twelve benchmarks."""


def parse_benchmarks(names: str) -> list[tuple[Benchmark, str | None]]:
    """Return the benchmarks and revisions named by `names`: `pope,mme@REVISION`, or `paper`.

    Raises:
        InputError: there is no such benchmark.
    """
    revisions: dict[str, str | None] = {}
    for word in names.split(","):
        name, _, revision = word.strip().partition("@")
        if name == "paper":
            revisions |= dict.fromkeys(PAPER, revision or None)
        elif name in BENCHMARKS:
            revisions[name] = revision or None
        else:
            raise InputError(
                f"there is no benchmark {name!r}; give some of {', '.join(BENCHMARKS)}, or paper "
                "for all twelve of the paper's table."
            )
    return [(BENCHMARKS[name], revision) for name, revision in revisions.items()]
