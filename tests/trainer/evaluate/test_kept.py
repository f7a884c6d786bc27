"""What an evaluation keeps, and under what it goes on from there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignshared import InputError
from aligntrain.evaluate import Settings, evaluate
from aligntrain.evaluate.run import TABLE
from aligntrain.evaluate.store import read_lines, write_lines
from tests.trainer.evaluate import fixtures
from tests.trainer.evaluate.fixtures import command, result
from tests.trainer.evaluate.stub_hub import Hub, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_what_is_done_is_not_done_again(
    evaluated: Any, says_a: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, output = evaluated
    before = result(output, "pope")

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is not needed")

    monkeypatch.setattr("aligntrain.evaluate.run.load_for_inference", load)
    done = evaluate(says_a, "pope", Settings(max_new_tokens=1), output=output)
    assert done.outcomes[0].result == before


def test_other_conditions_are_refused(evaluated: Any, chatters: Path, says_a: Path) -> None:
    _, output = evaluated
    said = command(says_a, "--benchmarks", "pope", "--output", output)
    assert said.exit_code == 2
    assert "answers under another max_new_tokens (1, now 128)" in " ".join(said.output.split())
    with pytest.raises(InputError, match="answers under another model"):
        evaluate(chatters, "pope", Settings(max_new_tokens=1), output=output)


def test_other_data_is_refused_also_when_all_is_done(
    evaluated: Any, says_a: Path, data: Path, tmp_path: Path
) -> None:
    _, output = evaluated
    before = result(output, "pope")
    same = evaluate(says_a, "pope", Settings(data=data, max_new_tokens=1), output=output)
    assert same.outcomes[0].result == before
    fixtures.pope(tmp_path, each=3)
    with pytest.raises(InputError, match="answers under another files"):
        evaluate(says_a, "pope", Settings(data=tmp_path, max_new_tokens=1), output=output)
    hub = Hub({"a" * 40: {"data/test-00000-of-00001.parquet": b""}}, "a" * 40)
    with serving(hub, tmp_path), pytest.raises(InputError, match=r"another revision \(None, now a"):
        evaluate(says_a, "pope@main", Settings(max_new_tokens=1), output=output)


def test_a_resume_stays_at_the_commit_it_began_with(says_a: Path, tmp_path: Path) -> None:
    commits = {
        commit * 40: {
            "data/test-00000-of-00001.parquet": fixtures.pope(tmp_path / commit, each).read_bytes()
        }
        for commit, each in (("a", 2), ("b", 3))
    }
    hub, settings = Hub(commits, "a" * 40), Settings(max_new_tokens=1)
    with serving(hub, tmp_path / "cache"):
        evaluate(says_a, "pope", settings, output=tmp_path / "o")
        (tmp_path / "o/pope/result.json").unlink()  # as if it had been killed
        hub.main = "b" * 40
        again = evaluate(says_a, "pope", settings, output=tmp_path / "o").outcomes[0].result
        assert (again["revision"], again["questions"]) == ("a" * 40, 6)
        evaluate(says_a, f"pope@{'a' * 40}", settings, output=tmp_path / "o")
        with pytest.raises(InputError, match="another revision"):
            evaluate(says_a, "pope@main", settings, output=tmp_path / "o")


def unfinished(evaluated: Any, place: Path, name: str = "pope") -> Path:
    """A copy of what was evaluated, as if it had been killed before the end of `name`."""
    output = shutil.copytree(evaluated[1], place / "o")
    (output / name / "result.json").unlink()
    return output


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"protocol": None}])
def test_answers_of_another_precision_or_protocol_are_not_continued(
    evaluated: Any, says_a: Path, data: Path, change: dict[str, Any], tmp_path: Path
) -> None:
    output = unfinished(evaluated, tmp_path)
    file = output / "pope" / "conditions.json"
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert set(change) < set(kept)
    file.write_text(json.dumps(kept | change), encoding="utf-8")
    with pytest.raises(InputError, match=f"answers under another {next(iter(change))}"):
        evaluate(says_a, "pope", Settings(data=data, max_new_tokens=1), output=output)


def test_an_answer_to_another_prompt_is_not_reused(
    evaluated: Any, says_a: Path, data: Path, tmp_path: Path
) -> None:
    output = unfinished(evaluated, tmp_path)
    file = output / "pope" / "answers.jsonl"
    lines = read_lines(file)
    asked = lines[2]["prompt"]
    lines[2] |= {"prompt": "What?", "text": "no"}
    lines[3] |= {"text": "kept"}
    write_lines(file, lines)
    evaluate(says_a, "pope", Settings(data=data, max_new_tokens=1), output=output)
    after = read_lines(file)
    assert len(after) == len(lines)
    assert (after[2]["prompt"], after[2]["text"]) == (asked, "A")
    assert after[3]["text"] == "kept"


def test_a_models_own_folder_is_evaluated_again_and_again(data: Path, tmp_path: Path) -> None:
    """Its `eval/` is no part of the model; the table keeps what was evaluated before."""
    model = fixtures.run_that_says_a(tmp_path) / "export"
    settings = Settings(data=data, max_new_tokens=1)
    first = evaluate(model, "mme", settings)
    assert first.output == model / "eval"
    second = evaluate(model, "pope,mme", settings)
    assert second.outcomes[1].result == first.outcomes[0].result
    third = evaluate(model, "textvqa", settings)
    assert [one.benchmark.name for one in third.outcomes] == ["textvqa"]
    table = (third.output / TABLE).read_text(encoding="utf-8")
    titles = [line.split("|")[1].strip() for line in table.splitlines()[2:5]]
    assert titles == ["TextVQA val", "POPE", "MME perception"]


def test_the_listing_of_a_server_may_come_when_all_is_answered(
    evaluated: Any, says_a: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(evaluated[1], tmp_path / "o")
    listing = {"questions": [{"question_id": id_} for id_ in (9, 10, 11, 12)]}
    name = "v2_OpenEnded_mscoco_test2015_questions.json"
    (output / "vqav2" / name).write_text(json.dumps(listing), encoding="utf-8")
    done = evaluate(says_a, "vqav2", Settings(max_new_tokens=1), output=output)
    said = json.loads((output / "vqav2" / "submission.json").read_text(encoding="utf-8"))
    assert [one["question_id"] for one in said] == [9, 10, 11, 12]
    assert any("upload it at" in note for note in done.outcomes[0].result["notes"])


def test_a_killed_evaluation_goes_on_where_it_stopped(
    chatters: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntrain.evaluate import store as records

    settings = Settings(data=data, max_new_tokens=4)
    evaluate(chatters, "pope", settings, output=tmp_path / "whole")
    append = records.JsonlLog.append

    def die_at_the_fourth(self: Any, line: dict[str, Any]) -> None:
        if line["row"] == 3:
            with (tmp_path / "cut/pope/answers.jsonl").open("a") as out:
                out.write('{"row": 3, "te')  # as a write that a kill cut off
            raise KeyboardInterrupt
        append(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(records.JsonlLog, "append", die_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            evaluate(chatters, "pope", settings, output=tmp_path / "cut")
    assert not (tmp_path / "cut/pope/result.json").exists()
    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            records.JsonlLog,
            "append",
            lambda self, line: (asked.append(line["row"]), append(self, line)),
        )
        evaluate(chatters, "pope", settings, output=tmp_path / "cut")
    assert asked == [3, 4, 5]
    both = [read_lines(tmp_path / name / "pope/answers.jsonl") for name in ("whole", "cut")]
    assert both[0] == both[1]
