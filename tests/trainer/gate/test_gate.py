"""What `aligntrain gate` reports: the gate's own weights, and what forcing a level does."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from alignshared import InputError
from aligntrain.cli import app
from aligntrain.data.dataset import ShardedDataset
from aligntrain.evaluate.short_answers import question_type
from aligntrain.gate.explain import explain_gate
from aligntrain.gate.questions import FIRST_WORDS, read_gate_questions
from aligntrain.gate.summary import GateReport
from aligntrain.inference.load import load_model
from tests.trainer import rows, tiny

EVIL = "<script>alert('x')</script>"


def talking_rows(count: int) -> list[dict[str, Any]]:
    """Rows of an instruction dataset with questions of several types; each sixth has no image."""
    made = rows.talk_rows(count, text_every=6)
    for number, row in enumerate(made):
        mark = "<image>\n" if row["image"] else ""
        row["conversations"] = [
            {"from": "human", "value": f"{mark}Is this number {number}?"},
            {"from": "gpt", "value": "Yes"},
            {"from": "human", "value": f"What colour is {EVIL}?"},
            {"from": "gpt", "value": "a long answer that nobody would match word by word"},
        ]
    return made


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    rows.write_rows(folder, talking_rows(30))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rows.write_rows(folder, rows.pair_rows(24), levels=4)
    return folder


def saved(folder: Path, **choices: Any) -> Path:
    """A tiny model whose levels are heard and whose gate prefers something."""
    model = tiny.model(text_config=tiny.text_config(max_position_embeddings=1024), **choices)
    with torch.no_grad():
        if model.model.alignment is not None:
            model.model.alignment.table.mul_(20)
    model.save_pretrained(folder)
    tiny.processor(model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def samples(report: GateReport) -> dict[str, list[Any]]:
    return pq.read_table(report.output / "gate.parquet").to_pydict()


def test_the_weights_are_those_that_a_chat_hears(model: Path, talks: Path, tmp_path: Path) -> None:
    from aligntrain.inference.chat import Chat

    found = samples(explain_gate(model, talks, output=tmp_path / "r", limit=4))
    by_id = {row["id"]: row for row in talking_rows(30)}
    chat = Chat.load(model, device="cpu")
    for at in range(4):
        chat.reset()
        image = tmp_path / "image.png"
        image.write_bytes(by_id[found["id"][at]]["image"]["bytes"])
        "".join(chat.answer(found["question"][at], image, max_new_tokens=1))
        assert found["gate_weights"][at] == pytest.approx(chat.gate_weights, abs=1e-5)


def test_weights_do_not_depend_on_the_batch(model: Path, talks: Path, tmp_path: Path) -> None:
    one, many = (
        samples(explain_gate(model, talks, output=tmp_path / str(size), batch_size=size))
        for size in (1, 7)
    )
    assert one["id"] == many["id"]
    np.testing.assert_allclose(one["gate_weights"], many["gate_weights"], atol=2e-6)
    spread = np.std(one["gate_weights"], axis=0)
    assert spread.max() > 1e-3  # it is no constant that is compared


def test_a_report_on_conversations(model: Path, talks: Path, tmp_path: Path) -> None:
    report = explain_gate(model, talks, output=tmp_path / "r")
    summary = json.loads((report.output / "gate.json").read_text(encoding="utf-8"))
    assert summary["questions"] == len(report.questions) == 50  # two of each of 25 pictures
    assert summary["left_out"]["without a picture"] == 5
    assert [kind.kind for kind in report.kinds] == ["all", "colour", "yes or no"]
    found = samples(report)
    weights = np.array(found["gate_weights"])
    colour = weights[np.array(found["type"]) == "colour"].mean(axis=0)
    np.testing.assert_allclose(report.kinds[1].weights, colour, atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found["mean_level"], weights @ [1, 2, 3], atol=1e-5)
    assert summary["correlations"] == {}
    page = (report.output / "report.html").read_text(encoding="utf-8")
    assert "neither scores nor levels" in page
    assert EVIL not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_a_question_of_the_data_is_escaped(model: Path, talks: Path, tmp_path: Path) -> None:
    report = explain_gate(model, talks, output=tmp_path / "r", limit=2)
    page = (report.output / "report.html").read_text(encoding="utf-8")
    assert EVIL in samples(report)["question"][1]
    assert "&lt;script&gt;alert" in page
    assert "<script" not in page


def test_pairs_are_told_by_level_and_held_against_their_score(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    report = explain_gate(model, pairs, output=tmp_path / "r")
    assert [kind.kind for kind in report.kinds] == ["all", *(f"level {k}" for k in range(1, 5))]
    summary = json.loads((report.output / "gate.json").read_text(encoding="utf-8"))
    found = samples(report)
    r = summary["correlations"]["score"]["pearson"]
    expected = np.corrcoef(found["score"], found["mean_level"])[0, 1]
    assert (r["r"], r["count"]) == (pytest.approx(expected, abs=1e-4), 24)
    assert r["low"] < r["r"] < r["high"]
    assert set(summary["correlations"]) == {"score", "level"}


def test_the_sweep_is_what_forcing_a_level_does(model: Path, talks: Path, tmp_path: Path) -> None:
    from aligntrain.inference.chat import Chat

    options: dict[str, Any] = {"limit": 5, "sweep": True, "sweep_limit": 2}
    report = explain_gate(model, talks, output=tmp_path / "r", batch_size=3, **options)
    assert [setting.level for setting in report.overall] == [None, 1, 2, 3, 4, "mean"]
    found = samples(report)
    at = next(i for i, said in enumerate(found["said_own"]) if said is not None)
    assert sum(loss is not None for loss in found["loss_own"]) == 2
    assert found["reference"][at] == "Yes"
    row = next(row for row in talking_rows(30) if row["id"] == found["id"][at])
    image = tmp_path / "image.png"
    image.write_bytes(row["image"]["bytes"])
    chat = Chat.load(model, device="cpu")
    for name, level in (("said_own", None), ("said_level_3", 3)):
        chat.reset()
        said = "".join(chat.answer(found["question"][at], image, level=level, max_new_tokens=16))
        assert found[name][at] == said.strip()
    losses = [found[f"loss_level_{k}"][at] for k in range(1, 5)]
    assert len({round(loss, 4) for loss in losses}) == 4
    alone = samples(explain_gate(model, talks, output=tmp_path / "s", batch_size=1, **options))
    for name in ("loss_own", "loss_level_2"):
        pairs = zip(found[name], alone[name], strict=True)
        assert all(b == (a and pytest.approx(a, abs=1e-5)) for a, b in pairs)


def test_equal_weights_are_the_mix_of_mixing_mean(tmp_path: Path, talks: Path) -> None:
    folder = saved(tmp_path / "gated")
    own = load_model(folder)[0].state_dict()
    saved(tmp_path / "mean", mixing="mean")
    without, _ = load_model(tmp_path / "mean")
    without.load_state_dict({name: own[name] for name in without.state_dict()})
    without.save_pretrained(tmp_path / "mean")
    options: dict[str, Any] = {"limit": 6, "sweep": True}
    ours = explain_gate(folder, talks, output=tmp_path / "a", **options)
    theirs = explain_gate(tmp_path / "mean", talks, output=tmp_path / "b", **options)
    expected = next(one.loss for one in theirs.overall if one.level is None)
    losses = {one.level: one.loss for one in ours.overall}
    assert losses["mean"] == pytest.approx(expected, rel=1e-6)
    assert losses[None] != pytest.approx(expected, rel=1e-6)


def test_the_loss_with_the_own_mix_sees_no_answer(tmp_path: Path, talks: Path) -> None:
    """Also where the model was trained to see it."""
    from aligntrain.inference.load import load_model

    folder = saved(tmp_path / "full", gate_text="full")
    model, _ = load_model(folder)
    model.config.gate_text = "prompt"
    model.save_pretrained(tmp_path / "prompt")
    tiny.processor(model.config).save_pretrained(tmp_path / "prompt")
    full, prompt = (
        samples(
            explain_gate(tmp_path / name, talks, output=tmp_path / f"r-{name}", limit=2, sweep=True)
        )
        for name in ("full", "prompt")
    )
    assert full["loss_own"] == pytest.approx(prompt["loss_own"], abs=1e-5)


@pytest.mark.parametrize(
    ("mixing", "sweep", "said"),
    [
        ("none", True, r"plain LLaVA \(mixing none\)"),
        ("global", False, "mixing global and no gate: every image gets the top level"),
        ("mean", False, "mixing mean and no gate"),
    ],
)
def test_models_without_a_gate_say_so(
    tmp_path: Path, talks: Path, mixing: str, sweep: bool, said: str
) -> None:
    folder = saved(tmp_path / "model", mixing=mixing)
    with pytest.raises(InputError, match=said):
        explain_gate(folder, talks, output=tmp_path / "r", sweep=sweep)


def test_levels_can_be_forced_without_a_gate(tmp_path: Path, talks: Path) -> None:
    folder = saved(tmp_path / "model", mixing="mean")
    report = explain_gate(folder, talks, output=tmp_path / "r", limit=2, sweep=True)
    assert report.without is not None
    assert report.kinds == []
    assert len(report.overall) == 5
    assert "no weights to show" in (report.output / "report.html").read_text(encoding="utf-8")
    assert "gate_weights" not in samples(report)


def test_a_pretrained_model_shows_what_each_level_does_to_captions(
    tmp_path: Path, pairs: Path, talks: Path
) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path / "model")
    tiny.processor(model.config, template="plain").save_pretrained(tmp_path / "model")
    options: dict[str, Any] = {"output": tmp_path / "r", "limit": 4, "sweep": True}
    report = explain_gate(tmp_path / "model", pairs, **options)
    assert "as it was drawn at random" in str(report.without)
    assert len(report.overall) == 6
    found = samples(report)
    summary = json.loads((report.output / "gate.json").read_text(encoding="utf-8"))
    for row in summary["sweep"]["matrix"]:
        own = [at for at, level in enumerate(found["level"]) if level == row["level"]]
        assert row["count"] == len(own)
        by_setting = {"loss_own": row["mix"]}
        by_setting |= {f"loss_level_{n}": loss for n, loss in enumerate(row["losses"], start=1)}
        for name, loss in by_setting.items():
            whole = [found["tokens"][at] * found[name][at] for at in own]
            assert loss == pytest.approx(sum(whole) / len(own), rel=1e-5)
    assert sum(row["count"] for row in summary["sweep"]["matrix"]) == 4
    # A caption of the plain template is its words and the end.
    tokenize = tiny.processor(model.config, template="plain").tokenizer
    words = [tokenize(text, add_special_tokens=False)["input_ids"] for text in found["question"]]
    assert found["tokens"] == [len(ids) + 1 for ids in words]
    with pytest.raises(InputError, match="reads no questions"):
        explain_gate(tmp_path / "model", talks, **options)


def test_types_may_be_those_of_a_column(pairs: Path) -> None:
    shards = ShardedDataset(pairs)
    assert read_gate_questions(shards).types_from == "level"
    by_width = read_gate_questions(shards, by="width")
    assert {question.kind for question in by_width.questions} == {"12"}
    with pytest.raises(InputError, match="no column score of words or whole numbers"):
        read_gate_questions(shards, by="score")


def test_a_limit_spreads_over_the_rows_and_the_turns(talks: Path) -> None:
    found = read_gate_questions(ShardedDataset(talks, conversations=True), limit=10)
    assert found.types_from == FIRST_WORDS
    assert len(found.questions) == 10
    assert len({question.row for question in found.questions}) == 10
    assert {question.turn for question in found.questions} == {0, 1}
    assert max(question.row for question in found.questions) > 24


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Is this a cat?", "yes or no"),
        ("How many dogs are there?", "how many"),
        ("Which group is this in?", "which"),
        ("What kind of thing is this?", "which"),
        ("What colour is the kite?", "colour"),
        ("What is the color of it?", "colour"),
        ("What is this?", "what"),
        ("Where is the ball?", "where"),
        ("Please provide the bounding box of the ball.", "where"),
        ("Why is he laughing?", "why or how"),
        ("Give a short caption.", "describe"),
        ("Describe the picture in a few words.", "describe"),
        ("What is it?\nA. a cat\nB. a dog", "multiple choice"),
        ("left or right", "other"),
    ],
)
def test_types_by_first_words(question: str, kind: str) -> None:
    assert question_type(question) == kind


def test_what_is_wrong_is_one_sentence(model: Path, talks: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        answer = CliRunner().invoke(app, ["gate", *words], catch_exceptions=False)
        assert answer.exit_code == 2, answer.output
        return " ".join(answer.output.split())

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear", encoding="utf-8")
    data = ["--data", str(talks)]
    assert "something else than a report" in said(
        str(model), *data, "--output", str(tmp_path / "mine")
    )
    assert "no finished model" in said(str(tmp_path), *data, "--output", str(tmp_path / "r"))
    assert "not a dataset" in said(
        str(model), "--data", str(tmp_path), "--output", str(tmp_path / "r")
    )
    assert "no column" in said(
        str(model), *data, "--by", "nothing", "--output", str(tmp_path / "r")
    )


def test_the_command_prints_the_weights(model: Path, talks: Path, tmp_path: Path) -> None:
    words = ["gate", str(model), "--data", str(talks), "--limit", "5", "--output"]
    words.append(str(tmp_path / "r"))
    CliRunner().invoke(app, words, catch_exceptions=False)
    answer = CliRunner().invoke(app, words, catch_exceptions=False)  # in the place of the first
    assert answer.exit_code == 0, answer.output
    assert "yes or no" in answer.output
    assert "5 questions" in answer.output
