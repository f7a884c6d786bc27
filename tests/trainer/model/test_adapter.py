"""The small adapter file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from alignshared import InputError
from aligntrain import load_adapter, save_adapter
from tests.trainer import tiny


def own(model: Any) -> dict[str, torch.Tensor]:
    parts = ("model.projector.", "model.alignment.")
    return {name: value for name, value in model.state_dict().items() if name.startswith(parts)}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "run" / "adapter.safetensors"
    first, second = tiny.model(seed=1), tiny.model(seed=2)
    kept = second.model.language_model.lm_head.weight.clone()
    save_adapter(first, path)
    assert load_adapter(second, path) == []
    for name, value in own(first).items():
        assert torch.equal(own(second)[name], value), name
    assert torch.equal(second.model.language_model.lm_head.weight, kept)
    assert [file.name for file in path.parent.iterdir()] == ["adapter.safetensors"]
    with safe_open(path, framework="pt") as file:
        assert '"levels": 4' in file.metadata()["sizes"]
        assert set(file.keys()) == set(own(first))


def test_a_part_that_one_of_the_two_lacks_is_left(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(tiny.model(seed=1, mixing="global"), path)
    gated = tiny.model(seed=2)
    before = gated.model.alignment.gate[0].weight.clone()
    lacking = load_adapter(gated, path)
    assert {name.split(".")[2] for name in lacking} == {"gate"}
    assert torch.equal(gated.model.alignment.gate[0].weight, before)
    plain = tiny.model(seed=3, mixing="none", levels=8)
    assert load_adapter(plain, path) == []


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"levels": 6}, "for 4 levels, but the model has 6"),
        ({"vision_feature_select": "full"}, "for 9 image tokens, but the model has 10"),
        ({"vision_config": tiny.vision_config(hidden_size=32)}, "vision tower"),
        ({"text_config": tiny.text_config(hidden_size=64)}, "for 32 .* has 64"),
        ({"gate_hidden": 9}, "gate"),
    ],
)
def test_other_sizes_are_refused(tmp_path: Path, choices: dict[str, Any], says: str) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(tiny.model(), path)
    model = tiny.model(**choices)
    before = {name: value.clone() for name, value in own(model).items()}
    with pytest.raises(InputError, match=says):
        load_adapter(model, path)
    assert all(torch.equal(value, own(model)[name]) for name, value in before.items())


def test_files_that_are_no_adapter_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(InputError, match="is no file"):
        load_adapter(tiny.model(), path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="is damaged"):
        load_adapter(tiny.model(), path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="is no adapter"):
        load_adapter(tiny.model(), path)
