"""What trains when, and at which rate."""

from typing import Any

import pytest
import torch

from alignshared import AlignError
from aligntrain.recipes import PHASES, load_recipe
from aligntrain.recipes.schema import OptimizerSettings
from aligntrain.train.phases import (
    PARTS,
    apply_phase,
    parameter_groups,
    part_of,
    part_sizes,
    trained_parts,
)
from tests.trainer import tiny


def training(model: Any) -> set[str]:
    return {part_of(name) for name, p in model.named_parameters() if p.requires_grad}


def test_the_stage_rules_of_the_paper() -> None:
    model = tiny.model()
    apply_phase(model, "pretrain")
    assert training(model) == {"projector", "table"}
    apply_phase(model, "finetune")
    assert training(model) == {"projector", "gate", "llm"}
    assert trained_parts("finetune") == ("projector", "gate", "llm")


@pytest.mark.parametrize("phase", PHASES)
def test_every_parameter_belongs_to_a_part(phase: Any) -> None:
    model = tiny.model()
    sizes = apply_phase(model, phase)
    assert [size.part for size in sizes] == [part for part in PARTS if part != "lora"]
    assert sum(s.parameters for s in sizes) == sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(s.parameters for s in sizes if s.trains) == trainable
    assert part_sizes(model, phase) == sizes


def test_a_model_has_only_the_parts_that_its_mixing_needs() -> None:
    plain = apply_phase(tiny.model(mixing="none"), "pretrain")
    assert [size.part for size in plain] == ["vision_tower", "projector", "llm"]
    gateless = apply_phase(tiny.model(mixing="global"), "finetune")
    assert [size.part for size in gateless] == ["vision_tower", "projector", "table", "llm"]


def test_frozen_parts_get_no_gradients() -> None:
    model = tiny.model().train()
    processor = tiny.processor(model.config)
    batch = processor(images=tiny.picture(0), text="<image>\na kite")
    for phase in PHASES:
        model.zero_grad(set_to_none=True)
        apply_phase(model, phase)
        labels = batch["input_ids"].clone()
        levels = torch.tensor([2]) if phase == "pretrain" else None
        model(**batch, labels=labels, levels=levels).loss.backward()
        touched = {part_of(n) for n, p in model.named_parameters() if p.grad is not None}
        assert touched == set(trained_parts(phase))


def test_a_parameter_of_no_part_is_told() -> None:
    with pytest.raises(AlignError, match="belongs to no part"):
        apply_phase(torch.nn.Linear(2, 2), "pretrain")


def test_parts_have_their_own_rates() -> None:
    model = tiny.model()
    apply_phase(model, "finetune")
    settings = OptimizerSettings(lr=1e-4, projector_lr=2e-4, gate_lr=3e-4)
    groups = parameter_groups(model, settings)
    assert [(g["name"], g["lr"]) for g in groups] == [
        ("projector", 2e-4), ("gate", 3e-4), ("llm", 1e-4),
    ]  # fmt: skip
    given = [id(p) for group in groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    torch.optim.AdamW(groups)


def test_only_matrices_decay_and_never_the_table() -> None:
    model = tiny.model()
    settings = OptimizerSettings(lr=1e-4, weight_decay=0.1)
    apply_phase(model, "pretrain")
    groups = {g["name"]: g for g in parameter_groups(model, settings)}
    assert set(groups) == {"projector", "projector_decayed", "table"}
    assert {g["name"]: g["weight_decay"] for g in groups.values()} == {
        "projector": 0, "projector_decayed": 0.1, "table": 0,
    }  # fmt: skip
    assert all(p.ndim == 2 for p in groups["projector_decayed"]["params"])
    assert all(p.ndim == 1 for p in groups["projector"]["params"])
    apply_phase(model, "finetune")
    names = {g["name"] for g in parameter_groups(model, settings)}
    assert names == {
        "projector", "projector_decayed", "gate", "gate_decayed", "llm", "llm_decayed",
    }  # fmt: skip


def test_the_paper_has_one_rate_for_all() -> None:
    model = tiny.model()
    recipe = load_recipe("vicuna-7b", "finetune")
    apply_phase(model, "finetune")
    groups = parameter_groups(model, recipe.optimizer)
    assert {g["lr"] for g in groups} == {2e-5}
    assert {g["weight_decay"] for g in groups} == {0}
