"""What the quickstart measures: on models too small to know anything, whose losses are known."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from alignshared import InputError
from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.index import read_index
from aligntrain.evaluate.short_answers import ShortQuestion
from aligntrain.gate.explain import explain_gate
from aligntrain.inference.chat import Chat
from aligntrain.inference.load import load_for_inference
from aligntrain.recipes import load_recipe
from aligntrain.runs.folder import EXPORT, METRICS, RunSpec, write_run
from tests.trainer import rows, runs, tiny
from tests.trainer.evaluate.fixtures import run_that_says_a

LEVELS = runs.LEVELS
KIND = {"caption_kind": pa.string()}


@pytest.fixture(scope="module")
def measure(scripts: Any) -> Any:
    return scripts("measure")


def pairs() -> list[dict[str, Any]]:
    kinds = ("full", "group", "mismatch")
    made = enumerate(rows.pair_rows(40, LEVELS))
    return [row | {"caption_kind": kinds[number % 3]} for number, row in made]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.recipe_file(tmp_path_factory.mktemp("recipe"))


def finished(
    folder: Path, recipe: Path, data: Path, phase: Any, mixing: str = "adaptive"
) -> RunSpec:
    """A run of a tiny model whose levels are heard."""
    chosen = load_recipe(recipe, phase, [f"model.mixing={mixing}"])
    spec = RunSpec(folder, chosen, str(data), ShardedDataset(data).digest)
    write_run(spec)
    text = tiny.text_config(max_position_embeddings=1024)
    model = tiny.model(text_config=text, mixing=mixing)
    if model.model.alignment is not None:
        with torch.no_grad():
            model.model.alignment.table.mul_(20)
    model.save_pretrained(folder / EXPORT)
    template = "plain" if phase == "pretrain" else "vicuna_v1"
    tiny.processor(model.config, template=template).save_pretrained(folder / EXPORT)
    return spec


@pytest.fixture(scope="module")
def spec(recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    folder = tmp_path_factory.mktemp("pretrain")
    rows.write_rows(folder / "data", pairs(), levels=LEVELS, extra=KIND)
    return finished(folder / "run", recipes, folder / "data", "pretrain")


def held_back(spec: RunSpec) -> list[dict[str, Any]]:
    index = read_index(ShardedDataset(spec.data))
    chosen = index.validation_rows(spec.recipe.data.validation_share).tolist()
    return [pairs()[number] for number in chosen]


def test_losses_are_those_of_the_gates_sweep_on_what_was_held_back(
    measure: Any, spec: RunSpec, tmp_path: Path
) -> None:
    swept = measure.sweep_held_out(spec, load_for_inference(spec.folder))
    losses = measure.held_out_losses(swept, LEVELS)
    kept = held_back(spec)
    assert 3 < len(kept) < 20
    rows.write_rows(tmp_path / "kept", kept, levels=LEVELS, extra=KIND)
    report = explain_gate(
        spec.folder, tmp_path / "kept", output=tmp_path / "gate", sweep=True, by="caption_kind"
    )
    assert [row.level for row in losses.matrix] == [row.level for row in report.matrix]
    for own, theirs in zip(losses.matrix, report.matrix, strict=True):
        assert own.count == theirs.count
        assert own.losses == pytest.approx(theirs.losses, rel=1e-5)
    found = pq.read_table(report.output / "gate.parquet").to_pylist()
    full = [row for row in found if row["type"] == "full"]
    gained = [row["tokens"] * (row["loss_own"] - row[f"loss_level_{LEVELS}"]) for row in full]
    lost = [row["tokens"] * (row["loss_level_1"] - row["loss_own"]) for row in full]
    assert losses.gained.count == len(full) > 1
    assert losses.gained.mean == pytest.approx(sum(gained) / len(full), rel=1e-4)
    assert losses.lost.mean == pytest.approx(sum(lost) / len(full), rel=1e-4)
    assert abs(losses.gained.mean) > 1e-3


def test_captions_are_those_of_a_chat_at_each_level(
    measure: Any, spec: RunSpec, tmp_path: Path
) -> None:
    drawings, _ = measure.known_images()
    loaded = load_for_inference(spec.folder)
    captions = measure.caption_images(loaded, drawings[:3])
    (tmp_path / "image.png").write_bytes(drawings[2].png)
    chat = Chat(*loaded)
    said: list[str] = []
    for level in range(1, LEVELS + 1):
        chat.reset()
        answer = chat.answer(
            "", tmp_path / "image.png", level=level, max_new_tokens=measure.LONGEST_CAPTION
        )
        said.append(" ".join("".join(answer).split()))
    assert captions[2] == said
    assert len(set(said)) > 1


@pytest.fixture(scope="module")
def plain(recipes: Path, spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """The run of `spec` without levels."""
    folder = tmp_path_factory.mktemp("plain")
    return finished(folder, recipes, Path(spec.data), "pretrain", mixing="none")


def test_a_model_without_levels_captions_once_and_has_one_loss(
    measure: Any, spec: RunSpec, plain: RunSpec, tmp_path: Path
) -> None:
    assert measure.plain_run(plain.folder, spec) == plain
    loaded, (drawings, _) = load_for_inference(plain.folder), measure.known_images()
    captions = measure.caption_images(loaded, drawings[:2])
    chat = Chat(*loaded)
    (tmp_path / "image.png").write_bytes(drawings[1].png)
    answer = chat.answer("", tmp_path / "image.png", max_new_tokens=measure.LONGEST_CAPTION)
    said = "".join(answer)
    assert [len(of_one) for of_one in captions] == [1, 1]
    assert captions[1] == [" ".join(said.split())]
    swept = measure.sweep_held_out(plain, loaded)
    levelled = measure.sweep_held_out(spec, load_for_inference(spec.folder))
    assert measure.of_full(swept, None).keys() == measure.of_full(levelled, LEVELS).keys()
    assert all(set(one.losses) == {None} for one in swept[1])


@pytest.mark.parametrize("what", ["the same run", "another seed", "other data"])
def test_a_plain_run_differs_in_levels_alone(
    measure: Any, spec: RunSpec, plain: RunSpec, recipes: Path, tmp_path: Path, what: str
) -> None:
    other = spec
    if what == "another seed":
        recipe = plain.recipe.model_copy(update={"seed": 1})
        other = dataclasses.replace(plain, folder=tmp_path / "run", recipe=recipe)
        write_run(other)
        shutil.copytree(plain.folder / EXPORT, other.folder / EXPORT)
    if what == "other data":
        rows.write_rows(tmp_path / "data", pairs()[:30], levels=LEVELS, extra=KIND)
        other = finished(tmp_path / "run", recipes, tmp_path / "data", "pretrain", mixing="none")
    with pytest.raises(InputError, match=r"is not the run .* without levels; train it"):
        measure.plain_run(other.folder, spec)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("a picture of {name}", "right name"),
        ("A picture of  {name} ", "right name"),
        ("a picture of {group}", "group"),
        ("a picture of symbols", "group"),
        ("a picture of {tag}", "tag"),
        ("a picture of {other}", "another name"),
        ("a picture of nothing that anyone drew", "other"),
        ("", "other"),
    ],
)
def test_captions_are_told_apart_by_what_they_say(measure: Any, said: str, kind: str) -> None:
    drawings, vocabulary = measure.known_images()
    drawing = next(one for one in drawings if one.concept.group == "food & drink")
    other = next(one for one in drawings if one.concept.group == "symbols")
    words = {
        "name": measure.bare_label(drawing.concept.label),
        "group": "food and drink",
        "tag": measure.usable_tags(drawing.concept)[0],
        "other": measure.bare_label(other.concept.label),
    }
    assert vocabulary.kind(said.format(**words), drawing) == kind


def test_test_images_are_known_and_always_in_the_same_order(measure: Any) -> None:
    drawings, vocabulary = measure.known_images()
    assert [drawing.id for drawing in measure.known_images()[0]] == [d.id for d in drawings]
    assert [drawing.id for drawing in drawings] != sorted(drawing.id for drawing in drawings)
    assert {measure.bare_label(d.concept.label).lower() for d in drawings} <= vocabulary.names
    found = measure.retrieval(drawings[:40])
    assert found.count == 40
    assert found.mean > 0.4  # a guess: 0.025


def test_answers_are_counted_beside_the_best_constant_one(measure: Any, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(rows.picture(0))
    asked = [
        ShortQuestion(str(place), kind, "What?", answer, tmp_path / "image.png")
        for place, (kind, answer) in enumerate(
            [("name", "A" * 16), ("name", "b"), ("name", "b"), ("group", "c")]
        )
    ]
    loaded = load_for_inference(run_that_says_a(tmp_path / "a"))
    found = measure.ask_questions(loaded, asked, untrained=loaded)
    assert found["name"].accuracy.mean == found["name"].untrained == pytest.approx(1 / 3)
    assert found["name"].constant == pytest.approx(2 / 3)
    assert found["group"].accuracy.high == pytest.approx(0.7935, abs=1e-4)  # Wilson, 0 of 1
    assert measure.ask_questions(loaded, asked)["group"].untrained is None


def run(script: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["measure.py", *words])
    script.main()


@pytest.fixture
def fine(recipes: Path, tmp_path: Path) -> Path:
    """A finished run of fine-tuning."""
    rows.write_rows(tmp_path / "talks", rows.talk_rows(6))
    return finished(tmp_path / "fine", recipes, tmp_path / "talks", "finetune").folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "image.png").write_bytes(rows.picture(0))
    asked = {"id": "a", "image": "image.png", "kind": "name", "question": "What?", "answer": "cat"}
    (tmp_path / "questions.json").write_text(json.dumps([asked]), encoding="utf-8")
    return tmp_path / "questions.json"


@pytest.fixture
def measured(spec: RunSpec, plain: RunSpec, fine: Path, questions: Path) -> dict[str, Path]:
    """All that one can give to the script."""
    return {
        "pretrained": spec.folder, "plain": plain.folder, "finetuned": fine, "questions": questions,
    }  # fmt: skip


def test_a_whole_measurement(
    measure: Any,
    scripts: Any,
    measured: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On 14 test images: the rest of them are more of the same."""
    lines = '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0, "validation_loss": 2.25}\n'
    (measured["finetuned"] / METRICS).write_text(lines, encoding="utf-8")
    drawings, vocabulary = measure.known_images()
    monkeypatch.setattr(measure, "known_images", lambda: (drawings[:14], vocabulary))
    output = tmp_path / "demo/figures.json"
    run(measure, monkeypatch, **measured, output=output)
    assert "Right answers of the fine-tuned model" in caplog.text
    figures = scripts("figures").read_figures(output)
    assert figures.levels == LEVELS
    assert [len(image.answers) for image in figures.images] == [2] * 12 + [0] * 2
    (name, group) = figures.images[0].answers
    assert len(name.weights) == LEVELS - 1
    assert sum(group.weights) == pytest.approx(1, abs=1e-5)
    assert group.expected == figures.images[0].group
    assert figures.curves["finetune"].training == [(1, 2.5), (2, 2.0)]
    assert figures.curves["finetune"].held_out == [(2, 2.25)]
    assert figures.questions["name"].accuracy.count == 1
    shares = [figures.share(1, kind).mean for kind in scripts("figures").KINDS]
    assert sum(shares) == pytest.approx(1)
    assert len(figures.plain.captions) == 14
    assert figures.plain.gained.count == figures.losses.gained.count
    assert "<svg" in scripts("show").render_page(figures)


@pytest.fixture
def unusable(request: Any, spec: RunSpec, recipes: Path, tmp_path: Path) -> Path:
    """A run, or none, that cannot be measured as one of pre-training."""
    what, folder = request.param, tmp_path / "unusable"
    data = folder / "data"
    if what == "no run":
        return folder
    if what == "another phase":
        rows.write_rows(data, rows.talk_rows(6))
        return finished(folder / "run", recipes, data, "finetune").folder
    if what == "no levels":
        return finished(folder, recipes, Path(spec.data), "pretrain", mixing="none").folder
    made = [pair | {"caption_kind": "group"} for pair in pairs()]
    rows.write_rows(data, made, levels=LEVELS, extra={} if what == "no kinds" else KIND)
    run = finished(folder / "run", recipes, data, "pretrain").folder
    if what == "unfinished":
        shutil.rmtree(run / EXPORT)
    return run


@pytest.mark.parametrize(
    ("unusable", "said"),
    [
        ("no run", "is not a run folder"),
        ("another phase", "is a run of finetune; give one of pretrain"),
        ("unfinished", "holds no finished model"),
        ("no levels", "has mixing none and no levels to force"),
        ("no kinds", "has no column caption_kind"),
        ("no full captions", "held back no pairs of .* with a full caption"),
    ],
    indirect=["unusable"],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    unusable: Path,
    said: str,
    measure: Any,
    fine: Path,
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(measure, monkeypatch, pretrained=unusable, finetuned=fine, questions=questions)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert error.splitlines()[-1].startswith("error: ")


def test_missing_questions_are_refused(
    measure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        run(measure, monkeypatch, questions=tmp_path / "none.json")
    assert "none.json cannot be read as questions" in capsys.readouterr().err
