"""Prompts of LLaVA-1.5, and so of the paper, byte for byte.

The chat template adds the image and a line feed before these texts.
"""

import math
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
"""A row of a benchmark's data."""

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接回答选项字母。"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
YES_NO = "Please answer yes or no."
PROTOCOL = 1
"""Version of prompts, images and answer limits; answers of another version are not reused."""


def short(row: Row) -> str:
    """VQAv2, GQA, POPE: the question, with a request for a short answer."""
    return row["question"].strip() + SHORT


def vizwiz(row: Row) -> str:
    """VizWiz: the question in sentence case with its outer spaces, and a way out."""
    return row["question"].capitalize() + UNANSWERABLE + SHORT


def textvqa(row: Row) -> str:
    """TextVQA: the question in sentence case, with the words read by an OCR system (Rosetta)."""
    question, words = row["question"].strip().capitalize(), ", ".join(row["ocr_tokens"])
    return f"{question}\nReference OCR token: {words}{SHORT}"


def mme(row: Row) -> str:
    """MME: LLaVA's instruction replaces its own."""
    return row["question"].replace(YES_NO, "").strip() + SHORT


def science(row: Row) -> str:
    """ScienceQA: context, question, options."""
    context = "" if absent(row["hint"]) or not row["hint"] else f"Context: {row['hint']}\n"
    letters = zip("ABCDEFGHIJ", row["choices"], strict=False)
    options = "\n".join(f"{letter}. {choice}" for letter, choice in letters)
    return f"{context}{row['question']}\n{options}{LETTER}"


def seed(row: Row) -> str:
    """SEED-Bench: four options."""
    options = "\n".join(f"{letter.upper()}. {row[f'choice_{letter}']}" for letter in "abcd")
    return f"{row['question']}\n{options}{LETTER}"


def mmbench(row: Row) -> str:
    """MMBench: hint, question, the row's options."""
    return _mmbench(row) + LETTER


def mmbench_cn(row: Row) -> str:
    """MMBench-CN: the same with a Chinese instruction."""
    return _mmbench(row) + LETTER_CN


def _mmbench(row: Row) -> str:
    hint = "" if absent(row["hint"]) else f"{row['hint']}\n"
    options = "".join(f"\n{letter}. {text}" for letter, text in mmbench_options(row).items())
    return f"{hint}{row['question']}{options}"


def mmbench_options(row: Row) -> dict[str, str]:
    """Return the options of a row of MMBench up to the first missing one."""
    options: dict[str, str] = {}
    for letter in "ABCD":
        if absent(row.get(letter)):
            break
        options[letter] = str(row[letter])
    return options


def bare(row: Row) -> str:
    """LLaVA-Bench, MM-Vet: the question alone."""
    return row["question"]


def absent(cell: Any) -> bool:
    """Whether a table's cell is empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return str(cell).lower() in ("nan", "none")
