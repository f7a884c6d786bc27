"""POPE and MME, by hand."""

from typing import Any

import pytest

from aligntrain.evaluate.scorers import mme_reading, pope_reading, score_mme, score_pope


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("No.", "no"),
        ("no", "no"),
        ("No, there is no dog.", "no"),
        ("There is not a dog", "no"),
        ("NO", "yes"),
        ("Nope", "yes"),
        ("A dog. No", "yes"),
        ("", "yes"),
    ],
)
def test_pope_reads_the_first_sentence(said: str, read: str) -> None:
    assert pope_reading(said) == read


def pope(split: str, *answers: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"text": said, "facts": {"answer": truth, "split": split}} for said, truth in answers]


def test_pope_is_the_mean_of_three_f1() -> None:
    """random: 2 hits, 1 false alarm, 1 miss; popular: all right; adversarial: no hit."""
    random = pope("random", ("Yes", "yes"), ("yes.", "yes"), ("yes", "no"), ("No", "yes"))
    popular = pope("popular", ("yes", "yes"), ("No, none.", "no"))
    adversarial = pope("adversarial", ("no", "yes"), ("yes", "no"))
    score = score_pope([*random, *popular, *adversarial])
    assert score.details["random F1"] == pytest.approx(100 * 2 / 3)
    assert score.details["popular F1"] == 100
    assert score.details["adversarial F1"] == 0
    assert score.value == pytest.approx((100 * 2 / 3 + 100 + 0) / 3)
    assert score.details["random precision"] == score.details["random recall"]
    assert score.details["random accuracy"] == 50
    assert score.details["random yes"] == 75
    assert score.points == [1, 1, 0, 0, 1, 1, 0, 0]


def test_a_model_that_always_says_yes_shows_in_its_share_of_yes() -> None:
    score = score_pope(pope("random", ("yes", "yes"), ("yes", "no")))
    assert score.details["random yes"] == 100
    assert score.details["random recall"] == 100
    assert score.details["random precision"] == 50


def test_a_split_without_a_yes_has_no_hits() -> None:
    assert score_pope(pope("random", ("no", "no"))).value == 0


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("Yes", "yes"),
        ("Yes.", "yes"),
        ("y", "yes"),
        ("N", "no"),
        ("No, there is no dog.", "no"),
        ("not sure", "no"),
        ("A", "other"),
        ("It is a dog, yes", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_the_first_letters(said: str, read: str) -> None:
    assert mme_reading(said) == read


def mme(category: str, picture: str, *answers: tuple[str, str]) -> list[dict[str, Any]]:
    facts = {"category": category, "picture": picture}
    return [{"text": said, "facts": {**facts, "answer": truth}} for said, truth in answers]


RIGHT = (("Yes", "Yes"), ("No", "No"))
HALF = (("Yes", "Yes"), ("Yes", "No"))
WRONG = (("No", "Yes"), ("hm", "No"))


def test_mme_adds_accuracy_and_whole_pairs() -> None:
    """count: 3 of 4 right (75), 1 of 2 pairs (50); OCR: 50 + 0; cognition apart."""
    records = [
        *mme("count", "1.png", *RIGHT), *mme("count", "2.png", *HALF), *mme("OCR", "1.png", *HALF),
        *mme("code_reasoning", "1.png", *RIGHT), *mme("code_reasoning", "2.png", *WRONG),
    ]  # fmt: skip
    score = score_mme(records)
    assert score.details == {"count": 125, "OCR": 50, "code_reasoning": 100, "cognition": 100}
    assert score.value == 175
    assert score.points == [1, 1, 1, 0, 1, 0, 1, 1, 0, 0]


def test_a_picture_with_one_question_makes_no_pair() -> None:
    score = score_mme([*mme("count", "1.png", *RIGHT), *mme("count", "2.png", ("Yes", "Yes"))])
    assert score.value == 200
    assert score.notes == ["1 images lack a question and are left out"]


def test_cognition_alone_is_no_perception() -> None:
    assert score_mme(mme("code_reasoning", "1.png", *RIGHT)).value is None
