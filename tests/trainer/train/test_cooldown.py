"""Cooldown: the last steps of a phase train without alignment vectors."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from alignshared import InputError
from aligntrain import load_model
from aligntrain.export.model import export_model, merge
from aligntrain.recipes import load_recipe
from aligntrain.runs.folder import read_metrics, result_of
from aligntrain.train.run import prepare
from aligntrain.train.trainer import cooldown_start
from tests.trainer import runs, tiny

HALF = ("cooldown=0.5", "checkpoint.every=1", "checkpoint.keep=9")
VECTORS = "model.alignment."


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, two datasets, and runs of both phases, `pretrain` and `finetune`:
    6 steps, of which the last 3 are without vectors.
    """
    place = tmp_path_factory.mktemp("place")
    runs.recipe_file(place)
    runs.pairs(place / "pairs")
    runs.talks(place / "talks")
    train(place, "pretrain", place / "pretrain", *HALF)
    train(place, "finetune", place / "finetune", *HALF)
    return place


def train(place: Path, phase: Any, output: Path, *overrides: str) -> list[dict[str, Any]]:
    data = place / ("pairs" if phase == "pretrain" else "talks")
    start = place / "pretrain" if phase == "finetune" else None
    prepare(
        phase, data, recipe=place / "tiny.yaml", output=output, start=start, overrides=overrides
    )
    return runs.train(output)


def norms(lines: list[dict[str, Any]]) -> list[float]:
    return [line["gradient_norm"] for line in lines if "loss" in line]


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The float32 values of the trained parameters after `step` steps."""
    files = (run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")
    tensors = {name: value for file in files for name, value in load_file(file).items()}
    return {
        name.removeprefix("master/"): value
        for name, value in tensors.items()
        if name.startswith("master/")
    }


@pytest.mark.parametrize("packing", ["true", "false"])
def test_its_steps_are_those_of_a_model_without_vectors(
    place: Path, tmp_path: Path, packing: str
) -> None:
    options = (f"batch.packing={packing}", "data.max_length=40")  # some captions are cut
    cooled = train(place, "pretrain", tmp_path / "cooled", *options, "cooldown=0.99")  # all steps
    plain = train(place, "pretrain", tmp_path / "plain", *options, "model.mixing=none")
    assert runs.losses(cooled) == runs.losses(plain)
    assert norms(cooled) == norms(plain)
    found, expected = state(tmp_path / "cooled", 6), state(tmp_path / "plain", 6)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    ending = result_of(tmp_path / "cooled")
    assert ending is not None
    assert ending["validation_loss_plain"] == runs.held_out(plain)[6]


def test_steps_before_it_are_those_of_a_run_without(place: Path, tmp_path: Path) -> None:
    whole = train(place, "pretrain", tmp_path / "run")
    found, expected = runs.losses(read_metrics(place / "pretrain")), runs.losses(whole)
    assert [found[step] == expected[step] for step in range(1, 7)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("phase", "part"), [("pretrain", "table"), ("finetune", "gate")])
def test_vectors_and_gate_rest_in_it(place: Path, phase: str, part: str) -> None:
    before, after, last = (state(place / phase, step) for step in (2, 3, 6))
    names = [name for name in last if name.startswith(VECTORS + part)]
    assert names
    assert not any(torch.equal(before[name], after[name]) for name in names)
    assert all(torch.equal(last[name], after[name]) for name in names)
    learning = [name for name in last if not name.startswith(VECTORS)]
    assert not any(torch.equal(last[name], after[name]) for name in learning)
    lines = [line for line in read_metrics(place / phase) if "loss" in line]
    rates = [rate for line in lines for rate in _of(line["learning_rate"], part)]
    assert [rate > 0 for rate in rates] == [True] * (len(rates) // 2) + [False] * (len(rates) // 2)
    assert [("gate_weights" in line) for line in lines][3:] == [False] * 3


def _of(rates: dict[str, float], part: str) -> list[float]:
    return [rate for name, rate in rates.items() if name.startswith(part)]


def test_held_out_rows_are_read_with_vectors_and_without(place: Path) -> None:
    lines = [line for line in read_metrics(place / "pretrain") if "validation_loss" in line]
    assert ["validation_loss_plain" in line for line in lines] == [False, True]
    assert lines[1]["validation_loss_plain"] != lines[1]["validation_loss"]
    assert (
        lines[1]["validation_loss_by_level"].keys() == lines[0]["validation_loss_by_level"].keys()
    )
    card = (place / "pretrain" / "export" / "README.md").read_text(encoding="utf-8")
    assert f"without alignment vectors: {lines[1]['validation_loss_plain']:.4f}" in card


@pytest.mark.parametrize("kept", [2, 3, 5])
def test_it_is_resumed_to_the_bit(place: Path, tmp_path: Path, kept: int) -> None:
    half = tmp_path / "half"
    shutil.copytree(place / "finetune", half)
    for step in range(kept + 1, 7):
        shutil.rmtree(half / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(half / "export")
    (half / "finished.json").unlink()
    resumed, whole = runs.train(half, resume=True), read_metrics(place / "finetune")
    assert runs.losses(resumed) == runs.losses(whole)
    assert runs.held_out(resumed) == runs.held_out(whole)
    found, expected = state(half, 6), state(place / "finetune", 6)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_give_the_same(place: Path, tmp_path: Path, stage: int) -> None:
    options = (*HALF, f"zero_stage={stage}")
    spread = train(place, "finetune", tmp_path / "run", *options)
    whole = runs.losses(read_metrics(place / "finetune"))
    assert runs.losses(spread) == pytest.approx(whole, abs=1e-4)
    after, last = state(tmp_path / "run", 3), state(tmp_path / "run", 6)
    gate = [name for name in last if name.startswith(VECTORS + "gate")]
    assert all(torch.equal(last[name], after[name]) for name in gate)


def test_the_run_is_exported_as_a_llava(place: Path, tmp_path: Path) -> None:
    llava = export_model(place / "finetune", tmp_path / "llava", "llava").output
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32)
    model, processor = load_model(place / "finetune")
    image = [model.config.image_token_id] * model.config.image_tokens
    ids = torch.tensor([[256, *image, 10, 20, 30]])
    pixels = processor.pixel_values([tiny.picture(1)])
    assert theirs.config.image_token_id == image[0]
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, align=False).logits
        found = theirs.eval()(input_ids=ids, pixel_values=pixels).logits
    own = model.config.llm_vocab_size
    torch.testing.assert_close(found[..., :own], expected[..., :own], rtol=1e-5, atol=1e-5)


def test_what_goes_on_without_a_cooldown_is_no_llava(place: Path, tmp_path: Path) -> None:
    train(place, "finetune", tmp_path / "run", "max_steps=1")  # from a start with a cooldown
    with pytest.raises(InputError, match="or train a model with cooldown="):
        export_model(tmp_path / "run", tmp_path / "llava", "llava")


def test_lora_and_what_is_merged_of_it_know_of_it(place: Path, tmp_path: Path) -> None:
    options = ("lora.rank=2", "max_steps=2", "cooldown=0.5")
    train(place, "finetune", tmp_path / "run", *options)
    merge(tmp_path / "run", tmp_path / "merged")
    for folder in (tmp_path / "run", tmp_path / "merged"):
        assert load_model(folder)[0].config.cooldown == 0.5
    export_model(tmp_path / "run", tmp_path / "llava", "llava")


@pytest.mark.parametrize(
    ("total", "share", "start"),
    [
        (100, 0.1, 90), (2180, 0.1, 1962), (30, 0.1, 27), (4, 0.1, 3), (1, 0.5, 0),
        (100, None, 100), (100, 0.0, 100),
    ],
)  # fmt: skip
def test_it_starts_at_a_step_that_follows_from_all_steps(
    total: int, share: float | None, start: int
) -> None:
    assert cooldown_start(total, share) == start


def test_it_ends_runs_of_epochs_too(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("max_steps=null", "epochs=2", "cooldown=0.2")  # 2 times 4 of 38 rows: 8 steps
    with caplog.at_level(logging.INFO, "aligntrain"):
        lines = train(place, "pretrain", tmp_path / "run", *options)
    rates = [line["learning_rate"]["table"] for line in lines if "loss" in line]
    assert [rate > 0 for rate in rates] == [True] * (len(rates) - 2) + [False] * 2
    assert f"steps from {len(rates) - 1} on train without alignment vectors" in caplog.text


@pytest.mark.parametrize("value", ["1", "-0.1", ".nan", "soon"])
def test_shares_that_cannot_be(value: str) -> None:
    with pytest.raises(InputError, match=r"^cooldown in --set cooldown=.* should be .*, not "):
        load_recipe("demo", "pretrain", [f"cooldown={value}"])


def test_the_key_is_null_where_nobody_sets_it() -> None:
    """So that checkpoints of before it go on."""
    assert load_recipe("demo", "pretrain").settings["cooldown"] is None
