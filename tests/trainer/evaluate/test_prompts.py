"""What is asked, to the byte: LLaVA-1.5's texts."""

from typing import Any

import pytest

from aligntrain.evaluate.benchmarks import BENCHMARKS, PAPER
from tests.trainer import tiny

NAN = float("nan")
OPTIONS = {"A": "red", "B": "blue", "C": NAN, "D": NAN}
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CHOICES = {f"choice_{letter}": word for letter, word in zip("abcd", "wxyz", strict=True)}

GOLDEN: list[tuple[str, dict[str, Any], str]] = [
    ("vqav2", {"question": "What colour?"}, f"What colour?{SHORT}"),
    ("vqav2-val", {"question": "What colour?"}, f"What colour?{SHORT}"),
    ("gqa", {"question": "Is it on the left?"}, f"Is it on the left?{SHORT}"),
    (
        "vizwiz",
        {"question": "What does IBM make?"},
        "What does ibm make?\nWhen the provided information is insufficient, respond with "
        "'Unanswerable'.\nAnswer the question using a single word or phrase.",
    ),
    (
        "vizwiz-val",
        {"question": "what is this? "},
        "What is this? \nWhen the provided information is insufficient, respond with "
        "'Unanswerable'.\nAnswer the question using a single word or phrase.",
    ),
    (
        "scienceqa",
        {"question": "Which is it?", "choices": ["a dog", "an ox"], "hint": "Look well."},
        f"Context: Look well.\nWhich is it?\nA. a dog\nB. an ox{LETTER}",
    ),
    (
        "scienceqa",
        {"question": "Which is it?", "choices": ["a dog", "an ox", "a yak"], "hint": ""},
        f"Which is it?\nA. a dog\nB. an ox\nC. a yak{LETTER}",
    ),
    (
        "textvqa",
        {"question": "who makes this IBM part?", "ocr_tokens": ["IBM", "42"]},
        f"Who makes this ibm part?\nReference OCR token: IBM, 42{SHORT}",
    ),
    (
        "textvqa",
        {"question": "what is written?", "ocr_tokens": []},
        f"What is written?\nReference OCR token: {SHORT}",
    ),
    ("pope", {"question": "Is there a dog?"}, f"Is there a dog?{SHORT}"),
    (
        "mme",
        {"question": "Is this a bay? Please answer yes or no."},
        f"Is this a bay?{SHORT}",
    ),
    (
        "mmbench",
        {"question": "Which colour?", "hint": "Look up.", **OPTIONS},
        f"Look up.\nWhich colour?\nA. red\nB. blue{LETTER}",
    ),
    (
        "mmbench",
        {"question": "Which?", "hint": NAN, **OPTIONS, "C": "nan", "D": "green"},
        f"Which?\nA. red\nB. blue{LETTER}",
    ),
    (
        "mmbench-cn",
        {"question": "哪个颜色", "hint": "nan", "A": "红", "B": "蓝", "C": None, "D": None},
        "哪个颜色\nA. 红\nB. 蓝\n请直接回答选项字母。",
    ),
    (
        "seed",
        {"question": "How many?", **CHOICES},
        f"How many?\nA. w\nB. x\nC. y\nD. z{LETTER}",
    ),
    ("llava-bench", {"question": "Describe this."}, "Describe this."),
    ("mm-vet", {"question": "What is x?"}, "What is x?"),
]


@pytest.mark.parametrize(("name", "row", "text"), GOLDEN)
def test_the_question(name: str, row: dict[str, Any], text: str) -> None:
    assert BENCHMARKS[name].prompt(row) == text


def test_every_benchmark_has_its_golden_text() -> None:
    assert {name for name, _, _ in GOLDEN} == set(BENCHMARKS)
    assert len(PAPER) == 12


def test_around_the_question_stands_the_template() -> None:
    processor = tiny.processor(tiny.config())
    text = BENCHMARKS["pope"].prompt({"question": "Is there a dog?"})
    content = [{"type": "image", "image": tiny.picture(1)}, {"type": "text", "text": text}]
    whole = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert whole == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "Is there a dog?\nAnswer the question using a single word or phrase. ASSISTANT:"
    )


def test_how_much_may_be_written() -> None:
    loader = {name for name, one in BENCHMARKS.items() if one.max_new_tokens == 128}
    assert loader == {
        "vqav2", "vqav2-val", "gqa", "vizwiz", "vizwiz-val", "textvqa", "pope", "mme", "seed"
    }  # fmt: skip
    assert {one.max_new_tokens for one in BENCHMARKS.values()} == {128, 1024}
