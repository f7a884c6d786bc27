"""VQA accuracy and exact match, by hand."""

from typing import Any

import pytest

from aligntrain.evaluate.scorers import normal_answer, score_exact, score_vqa, vqa_accuracy


def record(text: str, **facts: Any) -> dict[str, Any]:
    return {"text": text, "facts": facts}


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (10, 1)]
)
def test_ten_people_of_whom_some_agree(matches: int, accuracy: float) -> None:
    """Of the ten sets of nine, those without one of the matches count one less."""
    people = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("red", people) == pytest.approx(accuracy)


def test_unanswerable_is_an_answer_like_any_other() -> None:
    people = ["unanswerable"] * 7 + ["dog", "a dog", "brown dog"]
    assert vqa_accuracy("Unanswerable", people) == 1
    assert vqa_accuracy("unanswerable.", people) == 1
    assert vqa_accuracy("dog", people) == pytest.approx(0.6)
    assert vqa_accuracy("unsuitable", people) == 0


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("The Dog", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("left/right", "left right"),
        ("black , white", "black white"),
        ("dont", "don't"),
        ("its a couldnt've", "its couldn't've"),
        ("dog's", "dog 's"),
        ("  on\nthe\ttable ", "on table"),
        ("(blue)", "blue"),
        ("what?", "what"),
        ("", ""),
    ],
)
def test_answers_are_written_alike(said: str, read: str) -> None:
    assert normal_answer(said) == read


def test_the_mean_is_in_percent() -> None:
    people = ["cat"] * 10
    score = score_vqa([record("cat", answers=people), record("dog", answers=people)])
    assert (score.value, score.points) == (50, [1, 0])
    assert score_vqa([record("cat", answers=[])]).value == 0


def test_an_exact_match_looks_over_case_and_a_full_stop() -> None:
    said = ["Yes.", "yes", "yes, it is", "left", "right"]
    truth = ["yes", "Yes", "yes", "Left", "left"]
    records = [record(text, answer=answer) for text, answer in zip(said, truth, strict=True)]
    score = score_exact(records)
    assert score.points == [1, 1, 0, 1, 0]
    assert score.value == 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_answers_are_read_as_the_server_reads_them() -> None:
    """lmms-eval carries the server's own code; the two agree on whatever is made of these."""
    pytest.importorskip("lmms_eval", reason="the group lmms-eval is not installed")
    import random

    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    theirs = EvalAIAnswerProcessor()
    pieces = [
        *"abc123 .,?!'/-()\n\t", "the", "an ", " two", "dont", "couldn'tve", "hed've", "yall", "'s",
        "1,000", "ow's'at", "somebody'd", "let's", "she's", "lets", "Im", "none ", "3.5",
    ]  # fmt: skip
    known = list(EvalAIAnswerProcessor.CONTRACTIONS)
    generator = random.Random(0)
    for _ in range(4000):
        text = "".join(generator.choices([*pieces, *known], k=generator.randint(1, 6)))
        assert normal_answer(text) == theirs(text), text
