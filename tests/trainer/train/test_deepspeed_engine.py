"""DeepSpeed is asked for what the recipe says, and gives its state back whole."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from alignshared import InputError
from aligntrain.recipes import Phase, Recipe, load_recipe
from aligntrain.train.deepspeed_engine import (
    STATES,
    MasterState,
    build_engine,
    deepspeed_config,
    full_state,
    set_rates,
)
from aligntrain.train.phases import apply_phase
from tests.trainer import runs, tiny


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.recipe_file(tmp_path_factory.mktemp("recipe"))


def recipe(file: Path, phase: Phase, *overrides: str) -> Recipe:
    return load_recipe(file, phase, overrides)


def config(recipe: Recipe, *, on_gpu: bool = False) -> dict[str, Any]:
    return deepspeed_config(recipe, ranks=2, trainable=1000, on_gpu=on_gpu, micro_batches=3)


def test_the_batch_is_split_over_ranks_and_steps(file: Path) -> None:
    asked = config(recipe(file, "finetune"))
    assert asked["train_batch_size"] == 4 * 3 * 2
    assert asked["gradient_accumulation_steps"] == 3
    assert asked["zero_optimization"] == {"stage": 0}
    assert not {"bf16", "fp16", "optimizer"} & asked.keys()


def test_offload_and_precision_are_asked_for(file: Path) -> None:
    asked = config(recipe(file, "finetune", "zero_stage=3", "offload=all", "precision=bf16"))
    assert asked["bf16"] == {"enabled": True}
    assert asked["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert asked["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert asked["zero_optimization"]["reduce_bucket_size"] == 1000
    only = config(recipe(file, "finetune", "zero_stage=2", "offload=optimizer"), on_gpu=True)
    assert "offload_param" not in only["zero_optimization"]
    assert only["zero_optimization"]["overlap_comm"]


def test_a_process_of_a_run_loads_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's Muon would load it, for 1.5 s."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with runs.as_worker(), runs.joined():
        from deepspeed.runtime.zero.muon import original_muon
    for name in ("muon_update", "zeropower_via_newtonschulz5"):
        assert not hasattr(getattr(original_muon, name), "_torchdynamo_orig_callable")
    assert "TORCHDYNAMO_DISABLE" not in os.environ


def engine_of(file: Path, phase: Phase = "finetune", *overrides: str) -> Any:
    settings = recipe(file, phase, "batch.global_size=2", "batch.micro_size=2", *overrides)
    model: Any = tiny.model()
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[settings.precision])
    apply_phase(model, phase)
    engine = build_engine(model, settings, micro_batches=1)
    engine.train()
    return engine


def steps(engine: Any, numbers: range) -> list[float]:
    losses: list[float] = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(0, 250, (2, 12), generator=generator)
        output = engine(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
        engine.backward(output.loss)
        engine.step()
        losses.append(float(output.loss.detach()))
    return losses


@pytest.mark.parametrize(
    ("stage", "precision", "offload"),
    [
        (0, "fp32", "none"), (1, "fp32", "none"), (2, "fp32", "optimizer"), (3, "fp32", "none"),
        (3, "fp32", "all"), (0, "bf16", "none"), (2, "bf16", "none"), (3, "bf16", "none"),
    ],
)  # fmt: skip
def test_the_whole_state_moves_to_another_engine(
    file: Path, stage: int, precision: str, offload: str
) -> None:
    overrides = (f"zero_stage={stage}", f"precision={precision}", f"offload={offload}")
    with runs.as_worker(), runs.joined():
        engine = engine_of(file, "finetune", *overrides)
        steps(engine, range(3))
        state = MasterState(engine)
        kept = {(n, k): state.get(p, k).clone() for n, p in state.parameters() for k in STATES}
        weights = full_state(engine.module)
        assert state.steps == 3
        expected = steps(engine, range(3, 6))

        other: Any = tiny.model(seed=1)
        other.to(next(iter(weights.values())).dtype)
        other.load_state_dict(weights, strict=False)
        apply_phase(other, "finetune")
        settings = recipe(file, "finetune", "batch.global_size=2", "batch.micro_size=2", *overrides)
        fresh = build_engine(other, settings, micro_batches=1)
        fresh.train()
        begun = MasterState(fresh)
        begun.begin(3)
        for name, parameter in begun.parameters():
            for kind in STATES:
                begun.set(parameter, kind, kept[name, kind])
        assert steps(fresh, range(3, 6)) == expected


def test_each_part_has_its_own_rate(file: Path) -> None:
    with runs.as_worker(), runs.joined():
        engine = engine_of(file, "finetune", "zero_stage=2")
        rates = set_rates(engine, 0.5)
    assert rates["projector"] == rates["projector_decayed"] == pytest.approx(1e-3)
    assert rates["gate_decayed"] == pytest.approx(1.5e-3)
    assert rates["llm_decayed"] == pytest.approx(5e-4)


def test_fp16_needs_a_gpu(file: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with runs.as_worker(), runs.joined(), pytest.raises(InputError, match="fp16 needs a GPU"):
        build_engine(tiny.model(), recipe(file, "pretrain", "precision=fp16"), micro_batches=2)
