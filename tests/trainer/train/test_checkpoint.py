"""A checkpoint is whole or none, and is taken only where it belongs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignshared import AlignError, InputError
from aligntrain.recipes import load_recipe
from aligntrain.train import checkpoint
from aligntrain.train.checkpoint import (
    Checkpoint,
    check_fits,
    checkpoints,
    load_weights,
    model_identity,
    newest_checkpoint,
    recipe_differences,
)
from aligntrain.train.phases import apply_phase
from aligntrain.train.run import prepare
from tests.trainer import runs, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training of six steps, with a checkpoint after every second."""
    place = tmp_path_factory.mktemp("place")
    recipe = runs.recipe_file(place)
    runs.pairs(place / "pairs")
    prepare("pretrain", place / "pairs", recipe=recipe, output=place / "run")
    runs.train(place / "run")
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def newest(run: Path) -> Checkpoint:
    found = newest_checkpoint(run)
    assert found is not None
    return found


def test_the_newest_stay(run: Path) -> None:
    assert [c.step for c in checkpoints(run)] == [4, 6]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000006",
    ]


def test_only_what_trains_is_kept(run: Path) -> None:
    (file,) = newest(run).folder.glob("*.safetensors")
    names = {name.partition("/")[2].split(".")[1] for name in load_file(file)}
    assert names == {"projector", "alignment"}
    assert all(value.dtype == torch.float32 for value in load_file(file).values())


def test_a_torn_checkpoint_is_none(run: Path) -> None:
    (file,) = newest(run).folder.glob("*.safetensors")
    os.truncate(file, file.stat().st_size - 1)
    assert newest(run).step == 4
    (newest(run).folder / "complete.json").unlink()
    assert newest_checkpoint(run) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"step": 8', '{"step": 8, "files": {"a": 1}}'])
def test_a_torn_marker_is_none(run: Path, text: str) -> None:
    (newest(run).folder / "complete.json").write_text(text)
    assert newest(run).step == 4


def test_a_folder_without_its_name_is_none(run: Path) -> None:
    folder = newest(run).folder
    folder.rename(folder.with_name(".unfinished-" + folder.name))
    assert newest(run).step == 4
    checkpoint.clear_unfinished(run)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000004"]


def test_damage_inside_a_file_is_found(run: Path) -> None:
    (file,) = newest(run).folder.glob("*.safetensors")
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(InputError, match=r"is damaged .* go on from the checkpoint before it"):
        load_weights(newest(run), tiny.model())


def fits(run: Path, finished: Path, *overrides: str, **model: Any) -> None:
    recipe = load_recipe(finished / "tiny.yaml", "pretrain", overrides)
    check_fits(newest(run), model_identity(tiny.config(**model)), recipe)


def test_a_checkpoint_fits_its_own_run(run: Path, finished: Path) -> None:
    fits(run, finished, gate_hidden=256)
    fits(run, finished, "zero_stage=2", "batch.micro_size=8", "data.workers=2", "checkpoint.keep=9")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"levels": 6}, "its levels is 4 and here it is 6"),
        (
            {"vision_config": tiny.vision_config(image_size=16)},
            "image tokens is 9 and here it is 16",
        ),
        ({"mixing": "none"}, "mixing is adaptive and here it is none"),
        (
            {"text_config": tiny.text_config(num_hidden_layers=3)},
            "llm is llama with 2 layers of 32",
        ),
        ({"text_config": tiny.text_config(hidden_size=64)}, "here it is llama with 2 layers of 64"),
        ({"vision_config": tiny.siglip_config()}, "here it is siglip_vision_model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    run: Path, finished: Path, model: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        fits(run, finished, **model)
    assert "start a new run" in str(caught.value)


def test_a_checkpoint_of_another_recipe_is_refused(run: Path, finished: Path) -> None:
    with pytest.raises(InputError, match=r"optimizer\.lr: 0\.003 there, 0\.1 here"):
        fits(run, finished, "optimizer.lr=0.1")
    with pytest.raises(InputError, match="precision: 'fp32' there, 'bf16' here"):
        fits(run, finished, "precision=bf16")


def test_a_checkpoint_of_another_format_is_refused(run: Path, finished: Path) -> None:
    marker = newest(run).folder / "complete.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99}))
    with pytest.raises(InputError, match="has the format 99 and this version reads 2"):
        fits(run, finished)


def test_a_key_that_is_newer_than_the_checkpoint_had_its_default(run: Path, finished: Path) -> None:
    marker = newest(run).folder / "complete.json"
    meta = json.loads(marker.read_text())
    del meta["recipe"]["model"]["vision_pixel_shuffle"], meta["recipe"]["cooldown"]
    marker.write_text(json.dumps(meta))
    fits(run, finished)
    with pytest.raises(InputError, match=r"cooldown: None there, 0\.5 here"):
        fits(run, finished, "cooldown=0.5")


def test_weights_of_another_shape_are_refused(run: Path) -> None:
    model = tiny.model(levels=6, gate_hidden=256)
    apply_phase(model, "pretrain")
    with pytest.raises(InputError, match=r"model\.alignment\.table .* the shape \[4, 32\]"):
        load_weights(newest(run), model)
    apply_phase(model, "finetune")
    with pytest.raises(InputError, match="of another model"):
        load_weights(newest(run), model)


def test_differences_name_keys_and_values(finished: Path) -> None:
    here = load_recipe(finished / "tiny.yaml", "pretrain")
    there = load_recipe(finished / "tiny.yaml", "pretrain", ["seed=7", "log.every=3"])
    assert recipe_differences(there.settings, here) == ["seed: 7 there, 0 here"]


def test_a_full_disk_is_a_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    shutil.rmtree(run / "checkpoints")
    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    with pytest.raises(AlignError, match="No space left on device"):
        runs.train(run)
    assert newest_checkpoint(run) is None
