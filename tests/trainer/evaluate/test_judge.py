"""Judged benchmarks: good replies, bad ones, none."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from alignshared import InputError
from aligntrain.evaluate import Judge, Settings, evaluate
from aligntrain.evaluate.benchmarks import PROTOCOL
from aligntrain.evaluate.judge import JUDGED, judge_all, read_correctness, read_pair
from aligntrain.evaluate.store import fingerprint, read_lines, write_json, write_lines
from tests.trainer.evaluate.fixtures import run_that_says_a
from tests.trainer.evaluate.stub_judge import judging

LLAVA, MM_VET = JUDGED["llava-bench"], JUDGED["mm-vet"]


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("8 6\nThe first is better.", [8, 6]),
        ("8, 6", [8, 6]),
        ("8.5 7", [8.5, 7]),
        ("8", None),
        ("1.5", None),
        ("8 6 7", None),
        ("Assistant 1: 8", None),
        ("8/10 and 4/10", None),
        ("80 60", None),
        ("-1 -1", None),
        ("nan nan", None),
        ("I cannot say.\n8 6", None),
        ("", None),
    ],
)
def test_a_pair_of_grades(reply: str, grade: list[float] | None) -> None:
    assert read_pair(reply) == grade


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.7", [0.7]),
        ("1.0 (totally right)", [1.0]),
        ("0", [0]),
        ("0.5.", [0.5]),
        ("1.5", None),
        ("-0.1", None),
        ("The score is 0.7", None),
        ("nan", None),
        ("", None),
    ],
)
def test_correctness(reply: str, grade: list[float] | None) -> None:
    assert read_correctness(reply) == grade


def llava(row: int = 0, grade: Any = None, category: str = "conv") -> dict[str, Any]:
    facts = {"question": "What?", "caption": "A disk.", "gpt_answer": "Round.", "id": row}
    said: dict[str, Any] = {"row": row, "text": "A ring.", "facts": {**facts, "category": category}}
    return said if grade is None else {**said, "grade": grade}


def mm_vet(row: int = 0, grade: Any = None, capability: str = "ocr") -> dict[str, Any]:
    facts = {"question": "What is x?", "answer": "1<AND>2", "capability": capability, "id": row}
    return {"row": row, "text": "x = 1", "facts": facts, "grade": grade}


def test_llava_bench_is_the_share_of_the_reference() -> None:
    """Model 6 + 3 + 9 = 18, reference 8 + 6 + 10 = 24."""
    records = [llava(0, [8, 6]), llava(1, [6, 3]), llava(2, [10, 9], "detail")]
    score = LLAVA.score(records)
    assert score.value == pytest.approx(75)
    assert score.details == {"conv": pytest.approx(900 / 14), "detail": pytest.approx(90)}


def test_mm_vet_is_the_mean_also_by_capability() -> None:
    score = MM_VET.score([mm_vet(0, [0.5], "ocr,math"), mm_vet(1, [1.0], "ocr")])
    assert score.value == 75
    assert score.details == {"ocr": 75, "math": 50}


@pytest.mark.parametrize(
    "records", [[llava(0, [8, 6]), llava(1)], [mm_vet(0, [1.0]), mm_vet(1)]], ids=["llava", "mm"]
)
def test_a_missing_grade_leaves_no_score(records: list[dict[str, Any]]) -> None:
    judged = LLAVA if "gpt_answer" in records[0]["facts"] else MM_VET
    score = judged.score(records)
    assert score.value is None
    assert score.notes == ["1 of 2 answers judged"]


def test_what_judges_are_asked() -> None:
    system, asked = LLAVA.ask(llava())
    assert system["content"].startswith("You are a helpful and precise assistant")
    assert asked["content"].startswith(
        "[Context]\nA disk.\n\n[Question]\nWhat?\n\n[Assistant 1]\nRound.\n\n[End of Assistant 1]"
        "\n\n[Assistant 2]\nA ring.\n\n[End of Assistant 2]\n\n[System]\nWe would like to request"
    )
    (only,) = MM_VET.ask(mm_vet())
    assert only["content"].startswith("Compare the ground truth and prediction")
    assert "\nQuestion | Ground truth | Prediction | Correctness\n" in only["content"]
    assert only["content"].endswith("\nWhat is x? | 1 <AND> 2 | x = 1 |")


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_judge_is_asked_as_its_benchmark_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with judging(lambda _: "8 6") as (url, asked):
        (said,) = judge_all(Judge(url, "wise"), LLAVA, [llava()])
        monkeypatch.delenv("OPENAI_API_KEY")
        Judge(url, "wise").ping()
    assert said == {"row": 0, "judge": "wise", "grade": [8, 6], "reply": "8 6"}
    one, without_key = asked
    assert (one["path"], one["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert without_key["key"] is None
    assert (one["model"], one["temperature"], one["max_tokens"]) == ("wise", 0.2, 1024)


@pytest.mark.parametrize("reply", ["1.5", "garbage", "8/10", "it is 0.5 or 0.6", ""])
def test_a_reply_without_a_grade_is_asked_for_three_times_more(reply: str) -> None:
    with judging(lambda _: reply) as (url, asked):
        (said,) = judge_all(Judge(url, "wise"), MM_VET, [mm_vet()])
    assert said["grade"] is None
    assert said["reply"] == reply
    assert [one["temperature"] for one in asked] == [0, 0.5, 1, 1.5]


def test_another_reply_may_hold_the_grade() -> None:
    replies = ["Correctness: 0.8", "0.7"]
    with judging(lambda _: replies.pop(0)) as (url, asked):
        (said,) = judge_all(Judge(url, "wise"), MM_VET, [mm_vet()])
    assert (said["grade"], said["reply"], len(asked)) == ([0.7], "0.7", 2)


@pytest.mark.parametrize("reply", ["Correctness: 0.8", "**0.8**\nIt lacks 2 words.", "(.8)"])
def test_a_judge_that_never_begins_with_the_number_is_read_at_last(reply: str) -> None:
    with judging(lambda _: reply) as (url, asked):
        (said,) = judge_all(Judge(url, "wise"), MM_VET, [mm_vet()])
    assert (said["grade"], said["reply"], len(asked)) == ([0.8], reply, 4)


def test_llava_bench_asks_for_a_reply_without_grades_once() -> None:
    with judging(lambda _: "Assistant 1: 8") as (url, asked):
        (said,) = judge_all(Judge(url, "wise"), LLAVA, [llava()])
    assert (said["grade"], len(asked)) == (None, 1)


REFUSED = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0.2 with this model.",
}


def test_a_judge_that_takes_no_limit_or_temperature_is_asked_without() -> None:
    def newer(asked: dict[str, Any]) -> Any:
        refused = next((told for name, told in REFUSED.items() if name in asked), None)
        return "8 6" if refused is None else (400, {"error": {"message": refused}})

    with judging(newer) as (url, asked):
        judge = Judge(url, "wise")
        judge.ping()
        said = list(judge_all(judge, LLAVA, [llava(0), llava(1)]))
    assert [one["grade"] for one in said] == [[8, 6], [8, 6]]
    assert len(asked) == 5  # what it does not take is asked about once
    assert all("temperature" not in one for one in asked[2:])
    # Room for what it thinks beside what it says.
    assert [one["max_completion_tokens"] for one in asked[3:]] == [1024 + 4096] * 2


def test_a_temperature_that_is_too_high_does_not_change_the_next_question() -> None:
    def modest(asked: dict[str, Any]) -> Any:
        return (400, REFUSED) if asked.get("temperature", 0) > 1 else "hm"

    with judging(modest) as (url, asked):
        list(judge_all(Judge(url, "wise"), MM_VET, [mm_vet()]))
        list(judge_all(Judge(url, "wise"), MM_VET, [mm_vet()]))
    assert [one.get("temperature") for one in asked] == [0, 0.5, 1, 1.5, None] * 2


def test_what_an_endpoint_says_of_its_error_is_told() -> None:
    told = {"error": {"message": "The model `wise` does not exist. " + "x" * 300}}
    with judging(lambda _: (404, told)) as (url, _):
        (said,) = judge_all(Judge(url, "wise"), MM_VET, [mm_vet()])
        with pytest.raises(InputError, match=r"\(status 404: .*The model `wise` does not exist"):
            Judge(url, "wise").ping()
    assert said["error"].startswith('status 404: {"error": {"message": "The model `wise` does not')
    assert len(said["error"]) == len("status 404: ") + 200


def test_a_judge_that_thinks_through_the_first_question_is_there() -> None:
    with judging(lambda _: None) as (url, _):
        judge = Judge(url, "wise")
        judge.ping()
        (said,) = judge_all(judge, MM_VET, [mm_vet()])
    assert (said["grade"], said["error"]) == (None, "a reply without text, ended by None")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"no HTTP at all\r\n\r\n", "no HTTP at all"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{", "peer closed connection"),
    ],
)
def test_a_reply_that_is_no_http_is_missing(sent: bytes, told: str) -> None:
    with judging(lambda _: sent) as (url, asked):
        (said,) = judge_all(Judge(url, "wise"), MM_VET, [mm_vet()])
    assert said["grade"] is None
    assert told in said["error"]
    assert len(asked) == 3


def test_a_status_that_may_pass_is_tried_again() -> None:
    replies: list[str | int] = [500, 429, "0.5"]
    with judging(lambda _: replies.pop(0)) as (url, asked):
        (said,) = judge_all(Judge(url, "wise"), MM_VET, [mm_vet()])
    assert (said["grade"], len(asked)) == ([0.5], 3)


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (401, 1)])
def test_a_status_that_stays_is_missing(status: int, tries: int) -> None:
    with judging(lambda _: status) as (url, asked):
        (said,) = judge_all(Judge(url, "wise"), MM_VET, [mm_vet()])
    error = f'status {status}: {{"error": "no"}}'
    assert (said["grade"], said["error"], len(asked)) == (None, error, tries)


def test_a_judge_that_died_is_not_asked_for_ever() -> None:
    with judging(lambda _: 500) as (url, _):
        said = list(judge_all(Judge(url, "wise"), MM_VET, [mm_vet(i) for i in range(40)]))
    assert len(said) == 8


def test_one_that_is_not_there_is_told_before_anything_else(tmp_path: Path) -> None:
    run = run_that_says_a(tmp_path)
    judge = Judge(f"http://127.0.0.1:{unused_port()}/v1", "wise")
    with pytest.raises(InputError, match=r"the judge wise at http.* does not answer \(.*refused"):
        evaluate(run, "mm-vet", Settings(judge=judge))
    assert not (tmp_path / "eval").exists()
    with judging(lambda _: 401) as (url, _), pytest.raises(InputError, match="status 401"):
        evaluate(run, "mm-vet", Settings(judge=Judge(url, "wise")))


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    """A run of which MM-Vet's answers are there, and no grades."""
    run = run_that_says_a(tmp_path / "run")
    folder = run / "eval" / "mm-vet"
    folder.mkdir(parents=True)
    write_lines(folder / "answers.jsonl", [mm_vet(i) for i in range(3)])
    conditions = {"model": fingerprint(run / "export"), "protocol": PROTOCOL, "limit": None}
    write_json(folder / "conditions.json", {**conditions, "max_new_tokens": 1024})
    result = {"benchmark": "mm-vet", "score": None, "questions": 3, "notes": [], "limit": None}
    write_json(folder / "result.json", {**result, "max_new_tokens": 1024, "comparable": "no score"})
    return run


def outcome(run: Path, judge: Judge | None) -> dict[str, Any]:
    return evaluate(run, "mm-vet", Settings(judge=judge)).outcomes[0].result


def test_answers_are_judged_without_asking_the_model_again(answered: Path) -> None:
    """Nor is lmms-eval needed, or the data: only what was written down."""

    def reply(asked: dict[str, Any]) -> str:
        return "yes" if "Reply with" in asked["messages"][0]["content"] else "0.5"

    with judging(reply) as (url, asked):
        graded = outcome(answered, Judge(url, "wise"))
        assert (graded["score"], graded["judge"]) == (50, "wise")
        assert graded["comparable"] == "no: another judge than the paper's"
        assert len(asked) == 4
        again = outcome(answered, Judge(url, "wise"))
        assert again["score"] == 50
        assert len(asked) == 5  # the question whether it is there
        other = outcome(answered, Judge(url, "wiser"))
        assert (other["judge"], len(asked)) == ("wiser", 9)
    kept = outcome(answered, None)
    assert kept["judge"] == "wiser"
    lines = read_lines(answered / "eval" / "mm-vet" / "judgements.jsonl")
    assert [line["judge"] for line in lines] == ["wise"] * 3 + ["wiser"] * 3


def test_what_was_not_graded_is_asked_again(answered: Path) -> None:
    """Half a judgement is no score, neither 0 nor 100; the next run asks for the rest."""
    replies = {"answers": 0}

    def unsure(asked: dict[str, Any]) -> str | int:
        if "Reply with" in asked["messages"][0]["content"]:
            return "yes"
        replies["answers"] += 1
        return "1.0" if replies["answers"] == 1 else "1.5"

    with judging(unsure) as (url, _):
        half = outcome(answered, Judge(url, "wise"))
    assert half["score"] is None
    for_its_grader = "MM-Vet's own grader takes it: https://github.com/yuweihao/MM-Vet"
    assert half["notes"] == [
        "1 of 3 answers judged",
        f"submission.json is written; {for_its_grader}",
    ]
    with judging(lambda _: "0.4") as (url, asked):
        whole = outcome(answered, Judge(url, "wise"))
    assert len(asked) == 3
    assert whole["score"] == pytest.approx(100 * (1 + 0.4 + 0.4) / 3)
    stored = json.loads((answered / "eval/mm-vet/result.json").read_text())
    assert stored["score"] == whole["score"]
