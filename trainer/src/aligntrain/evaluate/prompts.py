"""What LLaVA-1.5, and so the paper, asks in each benchmark, to the byte.

The picture and a line feed stand before these texts; the chat template stands around them.
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
"""Counts the ways in which models have been asked: texts, pictures, limits of an answer. Answers
given under another number are not reused.
"""


def short(row: Row) -> str:
    """VQAv2, GQA, POPE: the question, to be answered shortly."""
    return row["question"].strip() + SHORT


def vizwiz(row: Row) -> str:
    """VizWiz: with a way out, the question in sentence case and with the spaces around it."""
    return row["question"].capitalize() + UNANSWERABLE + SHORT


def textvqa(row: Row) -> str:
    """TextVQA: in sentence case, with the words that an OCR system (Rosetta) has read."""
    question, words = row["question"].strip().capitalize(), ", ".join(row["ocr_tokens"])
    return f"{question}\nReference OCR token: {words}{SHORT}"


def mme(row: Row) -> str:
    """MME: its own instruction makes place for LLaVA's."""
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
    """MMBench: hint, question, as many options as there are."""
    return _mmbench(row) + LETTER


def mmbench_cn(row: Row) -> str:
    """MMBench-CN: the same with a Chinese instruction."""
    return _mmbench(row) + LETTER_CN


def _mmbench(row: Row) -> str:
    hint = "" if absent(row["hint"]) else f"{row['hint']}\n"
    options = "".join(f"\n{letter}. {text}" for letter, text in mmbench_options(row).items())
    return f"{hint}{row['question']}{options}"


def mmbench_options(row: Row) -> dict[str, str]:
    """The options of a row of MMBench, to the first that it lacks."""
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
    """Whether a cell of a table says that there is nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return str(cell).lower() in ("nan", "none")
