"""Multiple choice, by hand."""

from typing import Any

import pytest

from aligntrain.evaluate.scorers import (
    chosen_letter,
    score_circular,
    score_letter,
    score_science,
)

ANIMALS = {"A": "a dog", "B": "a cat", "C": "an ox", "D": "a yak"}


def record(text: str, **facts: Any) -> dict[str, Any]:
    return {"text": text, "facts": facts}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B", 1),
        ("B. a cat", 1),
        ("The answer is B.", 1),
        ("A", 0),
        ("b", 0),
        ("B.", 0),
        ("a cat", 0),
        ("", 0),
        ("E", 0),
        ("The answer is A. The answer is B.", 0),
    ],
)
def test_science_letters_are_read_as_in_llava(said: str, right: int) -> None:
    assert score_science([record(said, answer="B", options=2)]).points == [right]


def test_science_counts_in_percent() -> None:
    records = [record("A", answer="A", options=4), record("hm", answer="C", options=4)]
    assert score_science(records).value == 50


def test_seed_wants_the_letter_alone() -> None:
    said = ["A", "A.", "B", "The answer is A"]
    kinds = ["scene", "scene", "count", "count"]
    records = [record(text, answer="A", kind=kind) for text, kind in zip(said, kinds, strict=True)]
    score = score_letter(records)
    assert score.points == [1, 0, 0, 0]
    assert score.value == 25
    assert score.details == {"scene": 50, "count": 0}


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B) a cat", "B"),
        ("B. something else", "B"),
        ("The answer is B.", "B"),
        ("A cat", "B"),
        ("a cat.", "B"),
        ("A dog sits here", None),
        ("Yes", None),
        ("E", None),
        ("", None),
        ("B or C", None),
        ("b", None),
    ],
)
def test_a_letter_or_an_option_is_a_choice(said: str, letter: str | None) -> None:
    assert chosen_letter(said, ANIMALS) == letter


def turned(index: int, *answers: tuple[str, str], options: int = 2) -> list[dict[str, Any]]:
    """The rotations of question `index`: what was said and what is right in each."""
    some = {letter: ANIMALS[letter] for letter in "ABCD"[:options]}
    return [
        record(said, index=index + turn * 1_000_000, answer=right, options=some, kind="animals")
        for turn, (said, right) in enumerate(answers)
    ]


def test_a_question_is_right_when_all_its_rotations_are() -> None:
    whole = turned(7, ("A", "A"), ("B", "B"))
    half = turned(8, ("A", "A"), ("A", "B"))
    score = score_circular([*whole, *half])
    assert score.value == 50
    assert score.points == [1, 1, 1, 0]
    assert score.details == {"animals": 50, "each rotation for itself": 75}
    assert score.notes == []


def test_a_question_that_lacks_a_rotation_is_left_out() -> None:
    """The first and the third of three, both right: neither right nor wrong in every one."""
    first, _, third = turned(9, ("A", "A"), ("B", "B"), ("C", "C"), options=3)
    whole = turned(7, ("A", "A"), ("hm", "B"))
    score = score_circular([first, third, *whole])
    assert score.value == 0
    assert score.notes == ["1 questions lack a rotation and are left out"]
    assert score_circular([first, third]).value is None
    assert score_circular([third]).value is None


def test_there_may_be_fewer_rotations_than_options() -> None:
    """The dev file has four options in three rotations 53 times, and all of them count."""
    right = turned(7, ("A", "A"), ("D", "D"), ("C", "C"), options=4)
    wrong = turned(8, ("A", "A"), ("D", "D"), ("A", "C"), options=4)
    score = score_circular([*right, *wrong])
    assert score.value == 50
    assert score.notes == []


def test_rotations_may_come_in_any_order() -> None:
    one, two = turned(7, ("A", "A"), ("B", "B"))
    other = turned(8, ("B", "A"), ("B", "B"))
    assert score_circular([two, *other, one]).value == 50
