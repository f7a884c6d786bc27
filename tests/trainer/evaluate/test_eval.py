"""`aligntrain eval`, whole: from files of each benchmark to scores that are known by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignshared import InputError
from aligntrain.evaluate import Settings, evaluate
from aligntrain.evaluate.run import TABLE
from aligntrain.evaluate.store import read_lines
from tests.trainer.evaluate import fixtures
from tests.trainer.evaluate.fixtures import command, result
from tests.trainer.evaluate.stub_hub import Hub, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


SCORES = {
    "pope": 200 / 3,  # always yes: precision 1/2, recall 1, in each split
    "mme": 0.0,  # A is neither yes nor no
    "textvqa": 30.0,  # one of ten
    "vqav2-val": 30.0,
    "vizwiz-val": 60.0,  # two of ten
    "gqa": 200 / 3,
    "scienceqa": 200 / 3,
    "seed": 50.0,  # two of the four with one picture
    "mmbench": 50.0,
    "mmbench-cn": 50.0,
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_by_hand(evaluated: Any, name: str) -> None:
    _, output = evaluated
    assert result(output, name)["score"] == pytest.approx(SCORES[name])
    answers = read_lines(output / name / "answers.jsonl")
    assert {line["text"] for line in answers} == {"A"}
    assert [line["row"] for line in answers] == list(range(len(answers)))
    assert all(line["score"] is not None for line in answers)


def test_what_was_asked_is_kept(evaluated: Any) -> None:
    _, output = evaluated
    first = read_lines(output / "textvqa" / "answers.jsonl")[0]
    assert first["prompt"] == (
        "What does ibm write?\nReference OCR token: IBM, 0\n"
        "Answer the question using a single word or phrase."
    )
    assert (first["tokens"], first["finished"], first["score"]) == (1, False, pytest.approx(0.3))
    assert sum(first["gate_weights"]) == pytest.approx(1)
    assert first["facts"]["answers"] == fixtures.TEN
    # Pictures of GQA and of MMBench's rotations lie elsewhere, videos of SEED are left out.
    assert len(read_lines(output / "gqa" / "answers.jsonl")) == 3
    assert len(read_lines(output / "seed" / "answers.jsonl")) == 4
    hint = read_lines(output / "mmbench-cn" / "answers.jsonl")[1]["prompt"]
    assert hint == "Look up.\nWhich one?\nA. red\nB. blue\n请直接回答选项字母。"


def test_the_table_says_what_can_be_compared(evaluated: Any) -> None:
    said, output = evaluated
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    assert "66.7" in rows["POPE"]
    assert "85.9" in rows["POPE"]
    assert "86.0" in rows["POPE"]
    assert rows["POPE"].rstrip().endswith("no: answers of at most 1 tokens")
    assert rows["VQAv2 val"].rstrip().endswith("no: the paper's is of test-dev")
    assert rows["VizWiz val"].rstrip().endswith("no: the paper's is of the test split")
    assert rows["VQAv2 test-dev"].rstrip().endswith("no score")
    assert "±20 from run to run" in rows["MME perception"]
    assert "LLaVA-Bench (Wild): 0 of 3 answers judged." in said
    written = (output / TABLE).read_text(encoding="utf-8")
    heading = "| benchmark | metric | questions | score | 95 % interval | LLaVA-1.5-7B |"
    assert written.startswith(heading)
    interval = result(output, "pope")["interval"]
    assert interval["images"] == 2  # each is asked about in all three splits
    shown = f"{interval['low']:.1f} to {interval['high']:.1f}"
    assert f"| POPE | mean of 3 F1 | 6 | 66.7 | {shown} | 85.9 | 86.0 |" in written


def test_servers_get_their_files(evaluated: Any) -> None:
    said, output = evaluated

    def submitted(name: str) -> Any:
        return json.loads((output / name / "submission.json").read_text(encoding="utf-8"))

    # "a" is an article, and so the server's own normal form of A is nothing.
    assert submitted("vqav2") == [{"question_id": 10 + i, "answer": ""} for i in range(2)]
    assert submitted("vizwiz") == [
        {"image": f"VizWiz_test_0000000{i}.jpg", "answer": ""} for i in range(2)
    ]
    assert submitted("mm-vet") == {f"v1_{i}": "A" for i in range(3)}
    assert "the server wants every question of the test set: put v2_OpenEnded" in said


def test_the_size_of_a_batch_changes_no_answer(chatters: Path, data: Path, tmp_path: Path) -> None:
    said: list[list[str]] = []
    for size in (1, 4):
        settings = Settings(data=data, max_new_tokens=8, batch_size=size)
        evaluate(chatters, "pope,textvqa,seed", settings, output=tmp_path / str(size))
        lines = [
            line
            for name in ("pope", "textvqa", "seed")
            for line in read_lines(tmp_path / str(size) / name / "answers.jsonl")
        ]
        said.append([line["text"] for line in lines])
    assert said[0] == said[1]
    assert len(set(said[0])) > 3


def test_a_limit_cuts_neither_pairs_nor_rotations(says_a: Path, data: Path, tmp_path: Path) -> None:
    settings = Settings(data=data, limit=2, max_new_tokens=1)
    done = evaluate(says_a, "mme,mmbench,seed", settings, output=tmp_path)
    questions = {one.benchmark.name: one.result["questions"] for one in done.outcomes}
    assert questions == {"mme": 2, "mmbench": 3, "seed": 2}
    assert all(not one.result["notes"] for one in done.outcomes)
    assert done.outcomes[0].result["comparable"] == "no: the first 2 questions"
    three = Settings(data=data, limit=3, max_new_tokens=1)
    more = evaluate(says_a, "mme", three, output=tmp_path / "three")
    assert more.outcomes[0].result["questions"] == 4


def test_a_level_is_forced_and_kept(chatters: Path, data: Path, tmp_path: Path) -> None:
    output, settings = tmp_path / "o", Settings(data=data, max_new_tokens=8, level=1)
    (done,) = evaluate(chatters, "pope", settings, output=output).outcomes
    assert (done.result["level"], done.result["comparable"][:3]) == (1, "no:")
    lines = read_lines(output / "pope" / "answers.jsonl")
    assert all(line["gate_weights"] is None for line in lines)
    said = command(
        chatters, "--benchmarks", "pope", "--data", data, "--output", output,
        "--max-new-tokens", 8, "--level", 2,
    )  # fmt: skip
    assert said.exit_code == 2
    assert "answers under another level (1, now 2)" in " ".join(said.output.split())
    wrong = Settings(data=data, level=5)
    with pytest.raises(InputError, match="there is no level 5; give one from 1 to 4"):
        evaluate(chatters, "pope", wrong, output=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_missing_data_is_named_before_anything_is_asked(says_a: Path, tmp_path: Path) -> None:
    fixtures.pope(tmp_path / "some")
    said = command(
        says_a, "--benchmarks", "pope,gqa", "--data", tmp_path / "some", "--output", tmp_path / "o"
    )
    assert said.exit_code == 2
    sentence = " ".join(said.output.split())
    assert "GQA: no data in" in sentence
    assert (
        "put testdev_balanced_instructions/testdev-*.parquet and testdev_balanced_images/ of "
        "https://huggingface.co/datasets/lmms-lab-encoder/GQA below" in sentence
    )
    assert not (tmp_path / "o" / "pope" / "answers.jsonl").exists()


def test_what_the_hub_lacks_is_named_before_anything_is_asked(says_a: Path, tmp_path: Path) -> None:
    file = fixtures.pope(tmp_path / "some")
    hub = Hub({"a" * 40: {"data/test-00000-of-00001.parquet": file.read_bytes()}}, "a" * 40)
    with (
        serving(hub, tmp_path / "cache"),
        pytest.raises(InputError, match=r"GQA: the Hub's .* has"),
    ):
        evaluate(says_a, "pope,gqa", Settings(max_new_tokens=1), output=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_damaged_data_is_named(says_a: Path, tmp_path: Path) -> None:
    (tmp_path / "pope.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"pope\.parquet cannot be read"):
        evaluate(says_a, "pope", Settings(data=tmp_path), output=tmp_path / "o")
    rows = [{"question": "x", "image": fixtures.encoded(1)}]
    fixtures.table(tmp_path / "pope.parquet", rows)
    with pytest.raises(InputError, match=r"pope\.parquet has no column question_id"):
        evaluate(says_a, "pope", Settings(data=tmp_path), output=tmp_path / "p")


def test_a_pretrained_model_is_refused(data: Path, tmp_path: Path) -> None:
    from aligntrain.runs.folder import EXPORT
    from tests.trainer import tiny

    model = tiny.model()
    model.save_pretrained(tmp_path / EXPORT)
    tiny.processor(model.config, template="plain").save_pretrained(tmp_path / EXPORT)
    with pytest.raises(InputError, match="pretrained and only captions images"):
        evaluate(tmp_path, "pope", Settings(data=data), output=tmp_path / "o")


def test_a_question_longer_than_the_model_reads(data: Path, tmp_path: Path) -> None:
    from aligntrain.runs.folder import EXPORT
    from tests.trainer import tiny

    tiny.saved(tmp_path / EXPORT)
    with pytest.raises(
        InputError, match=r"pope, row 1 .* longer than the 256 that the model reads"
    ):
        evaluate(tmp_path, "pope", Settings(data=data), output=tmp_path / "o")
    # Row 0 leaves room for less than the 128 tokens of the protocol, and is answered in those.
    (kept,) = read_lines(tmp_path / "o" / "pope" / "answers.jsonl")
    assert 0 < kept["tokens"] < 128


def test_lmms_eval_finds_the_model_by_its_entry_point(says_a: Path) -> None:
    """Its own tasks run on our models: what it passes to a model is answered."""
    pytest.importorskip("lmms_eval", reason="the group lmms-eval is not installed")
    from lmms_eval import models
    from lmms_eval.api.instance import Instance

    kind = models.get_model("aligngpt", True)
    model = kind.create_from_arg_string(f"pretrained={says_a}", {"batch_size": 2, "device": "cpu"})
    model.task_dict = {"stock": {"test": [{"image": fixtures.drawing(i)} for i in range(3)]}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(
                "What is this?", {"until": ["\n\n"], "max_new_tokens": tokens, "top_p": 1.0},
                lambda row: [row["image"]], i, "stock", "test",
            ),
            idx=0,
            metadata={"task": "stock", "doc_id": i, "repeats": 1},
        )
        for i, tokens in enumerate((2, 1, 2))
    ]  # fmt: skip
    assert model.generate_until(requests) == ["AA", "A", "AA"]
    forced = kind.create_from_arg_string(f"pretrained={says_a},level=2", {"device": "cpu"})
    forced.task_dict = model.task_dict
    assert [forced._question(one).level for one in requests] == [2, 2, 2]
    with pytest.raises(InputError, match="there is no level 5"):
        kind.create_from_arg_string(f"pretrained={says_a},level=5", {"device": "cpu"})


def test_one_of_several_processes_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lmms_eval", reason="the group lmms-eval is not installed")
    from aligntrain.evaluate.lmms_eval import AlignGPTLmm

    class Loaded(Exception):
        pass

    def load(_: str, *, device: str | None) -> None:
        raise Loaded(device)

    monkeypatch.setattr("aligntrain.evaluate.lmms_eval.load_for_inference", load)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for rank, given, taken in (("3", None, "cuda:3"), ("3", "cpu", "cpu"), (None, None, "None")):
        if rank is None:
            monkeypatch.delenv("LOCAL_RANK")
        else:
            monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(Loaded, match=taken):
            AlignGPTLmm("model", device=given)


def test_two_models_are_compared_question_by_question(
    evaluated: Any, says_a: Path, chatters: Path, data: Path, tmp_path: Path
) -> None:
    _, output = evaluated
    same = ("--data", data, "--max-new-tokens", 1, "--batch-size", 3)
    asked = ("--benchmarks", "gqa,seed,textvqa", *same)
    said = command(chatters, *asked, "--output", tmp_path / "ours", "--against", output)
    assert said.exit_code == 0, said.output
    compared = json.loads((tmp_path / "ours/comparison.json").read_text(encoding="utf-8"))
    assert compared["against"] == str(output)
    for name in ("gqa", "seed", "textvqa"):
        one = compared["benchmarks"][name]
        ours, theirs = (result(place, name)["score"] for place in (tmp_path / "ours", output))
        assert (one["score"], one["against"]) == (ours, theirs)
        if one["difference"] is not None:
            error = one["difference"]["error"]
            assert one["difference"]["mean"] == pytest.approx(ours - theirs)
            assert one["difference"]["detectable"] == pytest.approx(2.8016 * error, rel=1e-4)
    assert any(one["difference"] for one in compared["benchmarks"].values())
    assert "paired by question" in said.output
    # A model that has no results yet is evaluated first; one alone with itself is refused.
    fewer = ("--benchmarks", "gqa", *same, "--limit", 2)
    said = command(chatters, *fewer, "--output", tmp_path / "few", "--against", says_a)
    assert said.exit_code == 0, said.output
    assert (Path(says_a) / "eval/gqa/result.json").is_file()
    for against, reason in (
        (tmp_path / "few", "is the evaluation itself"),
        (output, "were given under another limit"),
    ):
        said = command(chatters, *fewer, "--output", tmp_path / "few", "--against", against)
        assert said.exit_code == 2
        assert reason in " ".join(said.output.split())
    said = command(chatters, *fewer, "--output", tmp_path / "no", "--against", tmp_path)
    assert "holds no finished model" in said.output
    assert not (tmp_path / "no").exists()
    said = command(chatters, "--benchmarks", "gqa,pope", *same, "--limit", 2,
                   "--output", tmp_path / "few", "--against", Path(says_a) / "eval")  # fmt: skip
    assert said.exit_code == 2
    assert "has no result of pope" in " ".join(said.output.split())
