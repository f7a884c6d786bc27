"""The authors' files as ours, made here with the authors' keys."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionModel,
    LlamaForCausalLM,
)

from alignshared import InputError
from aligntrain.export.convert import convert
from tests.trainer import tiny

PROJECTOR = {f"mm_projector.{i}.{kind}": f"model.projector.{i}.{kind}"
             for i in (0, 2) for kind in ("weight", "bias")}  # fmt: skip
GATE = {f"gated_weight_layer.mlp.{i}.{kind}": f"model.alignment.gate.{i}.{kind}"
        for i in (0, 2) for kind in ("weight", "bias")}  # fmt: skip
TABLE = {"align_indicators.indicator_embs": "model.alignment.table"}


@pytest.fixture
def towers(tmp_path: Path) -> dict[str, str]:
    """A vision tower and an LLM on this machine."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    CLIPVisionModel(tiny.vision_config()).save_pretrained(tmp_path / "clip")
    tiny.image_processor().save_pretrained(tmp_path / "clip")
    LlamaForCausalLM(tiny.text_config()).save_pretrained(tmp_path / "vicuna")
    tiny.tokenizer().save_pretrained(tmp_path / "vicuna")
    return {"vision_tower": str(tmp_path / "clip"), "llm": str(tmp_path / "vicuna")}


def state(model: Any, names: dict[str, str], prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + theirs: model.state_dict()[ours].clone() for theirs, ours in names.items()}


def test_a_stage_one_file(tmp_path: Path, towers: dict[str, str]) -> None:
    donor = tiny.model(seed=3, levels=8)
    source = tmp_path / "pretrain"
    source.mkdir()
    torch.save(state(donor, PROJECTOR | TABLE), source / "mm_projector_align.bin")
    described = {"mm_vision_tower": towers["vision_tower"], "mm_vision_select_layer": -2,
                 "_name_or_path": towers["llm"]}  # fmt: skip
    (source / "config.json").write_text(json.dumps(described))
    done = convert(source, tmp_path / "out")
    assert (done.kind, done.levels, done.mixing, done.new) == ("adapter", 8, "adaptive", ("gate",))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for ours in (PROJECTOR | TABLE).values():
        assert torch.equal(model.state_dict()[ours], donor.state_dict()[ours]), ours
    llm = LlamaForCausalLM.from_pretrained(towers["llm"])
    assert torch.equal(model.model.language_model.lm_head.weight[:260], llm.lm_head.weight)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    given = processor(text="<image>", images=tiny.picture(1))
    assert torch.isfinite(model(**given, levels=torch.tensor([8])).logits).all()


def test_llavas_projector(tmp_path: Path, towers: dict[str, str]) -> None:
    donor = tiny.model(seed=3)
    torch.save(state(donor, PROJECTOR, prefix="model."), tmp_path / "mm_projector.bin")
    done = convert(tmp_path / "mm_projector.bin", tmp_path / "out", **towers)
    assert (done.kind, done.mixing, done.new) == ("adapter", "none", ())
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for ours in PROJECTOR.values():
        assert torch.equal(model.state_dict()[ours], donor.state_dict()[ours])


@pytest.mark.parametrize("tower_inside", [True, False])
def test_a_full_checkpoint(tmp_path: Path, towers: dict[str, str], tower_inside: bool) -> None:
    donor = tiny.model(seed=3).to(torch.bfloat16)
    source = tmp_path / "aligngpt-7b"
    source.mkdir()
    weights = state(donor, PROJECTOR | TABLE | GATE)
    llm = donor.model.language_model
    weights |= llm.state_dict()
    if tower_inside:
        weights |= {
            f"vision_tower.vision_tower.vision_model.{name.removeprefix('vision_model.')}": value
            for name, value in donor.model.vision_tower.state_dict().items()
        }
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    names = sorted(weights)
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = source / f"pytorch_model-0000{part}-of-00002.bin"
        torch.save({name: weights[name] for name in chosen}, file)
    torch.save({"lr": 2e-5}, source / "training_args.bin")
    described = {**llm.config.to_dict(), "model_type": "aligngpt", "mm_vision_select_layer": -2,
                 "architectures": ["AlignGPTForCausalLM"], "image_aspect_ratio": "pad",
                 "mm_vision_tower": towers["vision_tower"]}  # fmt: skip
    (source / "config.json").write_text(json.dumps(described))
    tiny.tokenizer().save_pretrained(source)

    done = convert(source, tmp_path / "out")
    assert (done.kind, done.levels, done.new) == ("full", 4, ())
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    tower = donor if tower_inside else CLIPVisionModel.from_pretrained(towers["vision_tower"])
    expected = dict(donor.state_dict())
    if not tower_inside:
        expected |= {f"model.vision_tower.{name}": value.to(torch.bfloat16)
                     for name, value in tower.state_dict().items()}  # fmt: skip
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert model.config.gate_text == "full"
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert (processor.aspect, processor.template) == ("pad", "vicuna_v1")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_pickles_run_no_code(workdir: Path, towers: dict[str, str]) -> None:
    torch.save({"mm_projector.0.weight": Evil()}, workdir / "mm_projector.bin")
    with pytest.raises(InputError, match="without running code"):
        convert(workdir / "mm_projector.bin", workdir / "out", **towers)
    assert not (workdir / "evil").exists()


def test_what_cannot_be_converted_is_refused(tmp_path: Path, towers: dict[str, str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="does not exist"):
        convert(tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds none of"):
        convert(tmp_path / "empty", out)
    file = tmp_path / "mm_projector.bin"
    torch.save({"something": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="no mm_projector"):
        convert(file, out, **towers)
    torch.save(state(tiny.model(), PROJECTOR, "model."), file)
    with pytest.raises(InputError, match="give --vision-tower"):
        convert(file, out)
    wide = tiny.model(text_config=tiny.text_config(hidden_size=64))
    torch.save(state(wide, PROJECTOR, "model."), file)
    with pytest.raises(InputError, match="of the shape"):
        convert(file, out, **towers)
    with pytest.raises(InputError, match="is not empty"):
        convert(file, tmp_path / "vicuna", **towers)
    assert not out.exists()
