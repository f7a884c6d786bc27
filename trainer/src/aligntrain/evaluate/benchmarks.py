"""The paper's twelve benchmarks and two validation splits: data, protocol, scorer, known values.

Published values: AlignGPT's README and LLaVA's model zoo, 7B; SEED-Bench on its images alone, from
LLaVA-1.5's paper. `noise` is the spread seen between reruns of a recipe or of the same weights.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alignshared import InputError
from aligntrain.evaluate import scorers
from aligntrain.evaluate.judge import JUDGED
from aligntrain.evaluate.scorers import Scorer

Row = Mapping[str, Any]
"""A row of a benchmark's data."""
PROTOCOL = 1
"""Version of prompts, images and answer limits; answers of another version are not reused."""
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
    `rows` filters rows. A judge grades the answers if `judged`. `edition` is another known number
    of questions, with a remark.
    """

    name: str
    title: str
    hub: str
    split: str
    columns: tuple[str, ...]
    prompt: Callable[[Row], str]
    facts: Callable[[Row], dict[str, Any]]
    metric: str
    score: Scorer = scorers.score_unknown
    config: str | None = None
    max_new_tokens: int = LOADER_TOKENS
    judged: bool = False
    unit: Callable[[Row], Any] | None = None
    rows: Callable[[Row], bool] | None = None
    published: Published | None = None
    not_comparable: str = ""
    edition: tuple[int, str] | None = None


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


# Prompts of LLaVA-1.5, and so of the paper, byte for byte. The chat template adds the image and a
# line feed before these texts.
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接回答选项字母。"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
YES_NO = "Please answer yes or no."
_LETTERS = "ABCDEFGHIJ"


def _short(row: Row) -> str:
    """VQAv2, GQA, POPE: the question, with a request for a short answer."""
    return row["question"].strip() + SHORT


def _vizwiz(row: Row) -> str:
    """VizWiz: the question in sentence case with its outer spaces, and a way out."""
    return row["question"].capitalize() + UNANSWERABLE + SHORT


def _textvqa(row: Row) -> str:
    """TextVQA: the question in sentence case, with the words read by an OCR system (Rosetta)."""
    question, words = row["question"].strip().capitalize(), ", ".join(row["ocr_tokens"])
    return f"{question}\nReference OCR token: {words}{SHORT}"


def _mme(row: Row) -> str:
    """MME: LLaVA's instruction replaces its own."""
    return row["question"].replace(YES_NO, "").strip() + SHORT


def _science(row: Row) -> str:
    """ScienceQA: context, question, options."""
    context = "" if _absent(row["hint"]) or not row["hint"] else f"Context: {row['hint']}\n"
    letters = zip(_LETTERS, row["choices"], strict=False)
    options = "\n".join(f"{letter}. {choice}" for letter, choice in letters)
    return f"{context}{row['question']}\n{options}{LETTER}"


def _seed(row: Row) -> str:
    """SEED-Bench: four options."""
    options = "\n".join(f"{letter.upper()}. {row[f'choice_{letter}']}" for letter in "abcd")
    return f"{row['question']}\n{options}{LETTER}"


def _mmbench(row: Row) -> str:
    """MMBench without its instruction: hint, question, the row's options."""
    hint = "" if _absent(row["hint"]) else f"{row['hint']}\n"
    options = "".join(f"\n{letter}. {text}" for letter, text in _mmbench_options(row).items())
    return f"{hint}{row['question']}{options}"


def _mmbench_options(row: Row) -> dict[str, str]:
    """Return the options of a row of MMBench up to the first missing one."""
    options: dict[str, str] = {}
    for letter in "ABCD":
        if _absent(row.get(letter)):
            break
        options[letter] = str(row[letter])
    return options


def _absent(cell: Any) -> bool:
    """Whether a table's cell is empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return str(cell).lower() in ("nan", "none")


def _open_answer(row: Row) -> dict[str, Any]:
    answers = [item["answer"] if isinstance(item, dict) else item for item in row["answers"] or []]
    return {"id": row["question_id"], "answers": answers}


def _mmbench_facts(row: Row) -> dict[str, Any]:
    facts = {"index": int(row["index"]), "answer": row["answer"]}
    return {**facts, "options": _mmbench_options(row), "kind": row["category"]}


def _seed_facts(row: Row) -> dict[str, Any]:
    kind = f"question type {row.get('question_type_id', '?')}"
    return {"id": row["question_id"], "answer": row["answer"], "kind": kind}


def _cells(*columns: str, **renamed: str) -> Callable[[Row], dict[str, Any]]:
    """Return a function from a row to its cells in `columns`, then those under another name."""
    names = dict(zip(columns, columns, strict=True)) | renamed
    return lambda row: {name: row[column] for name, column in names.items()}


_OPEN_COLUMNS = ("question_id", "question", "answers")
_OPEN: dict[str, Any] = {
    "facts": _open_answer,
    "metric": "VQA accuracy",
    "score": scorers.score_vqa,
}
_SUBMITTED: dict[str, Any] = {
    "columns": ("question_id", "question"),
    "facts": _cells(id="question_id"),
    "metric": "VQA accuracy",
}
_LLAVA_BENCH = ("question_id", "question", "caption", "gpt_answer", "category")
_MM_VET = ("question_id", "question", "answer", "capability")
_MMBENCH: dict[str, Any] = {
    "hub": "lmms-lab-encoder/MMBench",
    "split": "dev",
    "columns": ("index", "question", "hint", "A", "B", "answer", "category"),
    "facts": _mmbench_facts,
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

_TABLE = (
    Benchmark(
        "vqav2", "VQAv2 test-dev", hub="lmms-lab-encoder/VQAv2", split="testdev", prompt=_short,
        published=Published(78.5, 79.1, 107_394), **_SUBMITTED,
    ),
    Benchmark(
        "vqav2-val", "VQAv2 val", hub="lmms-lab-encoder/VQAv2", split="validation",
        columns=_OPEN_COLUMNS, prompt=_short, not_comparable="the paper's is of test-dev", **_OPEN,
    ),
    Benchmark(
        "gqa", "GQA", hub="lmms-lab-encoder/GQA", config="testdev_balanced_instructions",
        split="testdev", columns=("id", "question", "answer"), prompt=_short,
        facts=_cells("id", "answer"), metric="exact match", score=scorers.score_exact,
        published=Published(62.0, 62.9, 12_578),
    ),
    Benchmark(
        "vizwiz", "VizWiz test", hub="lmms-lab-encoder/VizWiz-VQA", split="test", prompt=_vizwiz,
        published=Published(50.0, 54.2, 8_000), **_SUBMITTED,
    ),
    Benchmark(
        "vizwiz-val", "VizWiz val", hub="lmms-lab-encoder/VizWiz-VQA", split="val",
        columns=_OPEN_COLUMNS, prompt=_vizwiz, not_comparable="the paper's is of the test split",
        **_OPEN,
    ),
    Benchmark(
        "scienceqa", "ScienceQA-IMG", hub="lmms-lab-encoder/ScienceQA", config="ScienceQA-IMG",
        split="test", columns=("question", "choices", "answer", "hint"), prompt=_science,
        facts=lambda row: {"answer": _LETTERS[row["answer"]], "options": len(row["choices"])},
        metric="accuracy", score=scorers.score_science, max_new_tokens=RUNNER_TOKENS,
        published=Published(66.8, 68.5, 2_017, "66.8 to 69.5 from the same weights"),
    ),
    Benchmark(
        "textvqa", "TextVQA val", hub="lmms-lab-encoder/textvqa", split="validation",
        prompt=_textvqa, published=Published(58.2, 58.4, 5_000),
        columns=(*_OPEN_COLUMNS, "ocr_tokens"), **_OPEN,
    ),
    Benchmark(
        "pope", "POPE", hub="lmms-lab-encoder/POPE", split="test",
        columns=("question_id", "question", "answer", "category"), prompt=_short,
        facts=_cells(id="question_id", answer="answer", split="category"), metric="mean of 3 F1",
        score=scorers.score_pope, published=Published(85.9, 86.0, 8_910),
        edition=(9_000, "9,000 questions, the paper's run had 8,910"),
    ),
    Benchmark(
        "mme", "MME perception", hub="lmms-lab-encoder/MME", split="test",
        columns=("question_id", "category", "question", "answer"), prompt=_mme,
        facts=_cells(picture="question_id", category="category", answer="answer"),
        metric="sum of 10, max 2000", score=scorers.score_mme,
        unit=lambda row: (row["category"], row["question_id"]),
        published=Published(1510.7, 1527.4, 2_374, "±20 from run to run"),
    ),
    Benchmark(
        "mmbench", "MMBench dev", config="en", prompt=lambda row: _mmbench(row) + LETTER,
        published=Published(64.3, 67.3, 4_377),
        edition=(4_329, "an edition of 4,329 rows, the paper's had 4,377"), **_MMBENCH,
    ),
    Benchmark(
        "mmbench-cn", "MMBench-CN dev", config="cn", prompt=lambda row: _mmbench(row) + LETTER_CN,
        published=Published(58.3, 59.9, 4_329), **_MMBENCH,
    ),
    Benchmark(
        "seed", "SEED-Bench image", hub="lmms-lab-encoder/SEED-Bench", split="test",
        columns=(
            "question_id", "question", "choice_a", "choice_b", "choice_c", "choice_d", "answer",
            "data_type",
        ),
        prompt=_seed, facts=_seed_facts, metric="accuracy", score=scorers.score_letter,
        rows=lambda row: row["data_type"] == "image", published=Published(66.2, 66.5, 14_233),
    ),
    Benchmark(
        "llava-bench", "LLaVA-Bench (Wild)", hub="lmms-lab-encoder/llava-bench-in-the-wild",
        split="train", columns=_LLAVA_BENCH, prompt=lambda row: row["question"],
        facts=_cells(*_LLAVA_BENCH, id="question_id"), metric="% of the reference",
        score=JUDGED["llava-bench"].score, published=Published(65.4, 68.4, 60), **_JUDGED,
    ),
    Benchmark(
        "mm-vet", "MM-Vet", hub="lmms-lab-encoder/MMVet", split="test", columns=_MM_VET,
        prompt=lambda row: row["question"], facts=_cells(*_MM_VET, id="question_id"),
        metric="mean grade ×100", score=JUDGED["mm-vet"].score,
        published=Published(31.1, 30.8, 218, "31.1 became 27.9 under a later judge"), **_JUDGED,
    ),
)  # fmt: skip

BENCHMARKS = {benchmark.name: benchmark for benchmark in _TABLE}
PAPER = tuple(name for name in BENCHMARKS if not name.endswith("-val"))
"""The paper's twelve benchmarks."""
