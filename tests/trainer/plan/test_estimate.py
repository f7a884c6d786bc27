"""The plan: what a run needs, held against what it has when it is built."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from alignshared import InputError
from aligntrain.cli import app
from aligntrain.model import build_model
from aligntrain.model.lora import add_lora
from aligntrain.plan import memory
from aligntrain.plan.estimate import plan
from aligntrain.plan.memory import Shape, model_states
from aligntrain.recipes import PHASES, Phase, load_recipe
from aligntrain.recipes.schema import LoraSettings
from aligntrain.train.phases import apply_phase
from tests.trainer import rows, tiny

PADDED = "batch.packing=false"

TINY = """
common:
  model: {{vision_tower: {folder}/vision, llm: {folder}/llm, levels: 4, mixing: {mixing}}}
  data: {{max_length: 64, validation_share: 0.25}}
  batch: {{global_size: 8, micro_size: 2}}
  optimizer: {{lr: 1e-3}}
  precision: fp32
pretrain: {{data: {{template: plain}}}}
finetune: {{data: {{template: chat}}, epochs: 2}}
"""


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPVisionModel, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("towers")
    CLIPVisionModel(tiny.vision_config()).save_pretrained(folder / "vision")
    LlamaForCausalLM(tiny.text_config(tie_word_embeddings=True)).save_pretrained(folder / "llm")
    tiny.tokenizer().save_pretrained(folder / "llm")
    return folder


def recipe_file(towers: Path, mixing: str = "adaptive") -> Path:
    path = towers / f"{mixing}.yaml"
    path.write_text(TINY.format(folder=towers, mixing=mixing), encoding="utf-8")
    return path


@pytest.mark.parametrize("mixing", ["adaptive", "local", "global", "mean", "none"])
@pytest.mark.parametrize("phase", PHASES)
def test_parameters_are_those_of_the_built_model(mixing: str, phase: Phase, towers: Path) -> None:
    recipe = load_recipe(recipe_file(towers, mixing), phase)
    model = build_model(recipe.model.vision_tower, recipe.model.llm, **recipe.model.choices)
    sizes = apply_phase(model, phase)
    planned = plan(recipe)
    assert planned.parts == sizes
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    assert planned.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert planned.image_tokens == model.config.image_tokens


def lora_recipe(towers: Path, *overrides: str) -> Any:
    given = ["lora.rank=4", "lora.dropout=0", *overrides]
    return load_recipe(recipe_file(towers), "finetune", given)


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj, v_proj]"])
def test_parameters_of_lora_are_those_of_the_built_model(targets: str, towers: Path) -> None:
    recipe = lora_recipe(towers, f"lora.targets={targets}")
    model = build_model(recipe.model.vision_tower, recipe.model.llm, **recipe.model.choices)
    add_lora(model, recipe.lora)
    sizes = apply_phase(model, "finetune")
    planned = plan(recipe)
    assert planned.parts == sizes
    assert planned.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = planned.states[0]
    assert states.weights == 4 * planned.parameters
    assert (states.gradients, states.optimizer) == (4 * planned.trainable, 8 * planned.trainable)
    llm, lora = (next(p for p in sizes if p.part == part) for part in ("llm", "lora"))
    assert planned.flops_per_token == 4 * llm.parameters + 6 * lora.parameters


def test_lora_of_a_7b_llama_has_the_published_size(tmp_path: Path) -> None:
    """159,907,840 parameters at rank 64: the QLoRA authors' own count for all linear layers."""
    from transformers import CLIPVisionConfig, LlamaConfig

    CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14,
    ).save_pretrained(tmp_path / "clip")  # fmt: skip
    LlamaConfig().save_pretrained(tmp_path / "llama")
    towers = [f"model.vision_tower={tmp_path / 'clip'}", f"model.llm={tmp_path / 'llama'}"]
    planned = {
        name: plan(name, "finetune", gpus=8, overrides=[*towers, *rank])
        for name, rank in (
            ("vicuna-7b", []), ("vicuna-7b-lora", []), ("vicuna-7b-qlora", ["lora.rank=64"]),
        )
    }  # fmt: skip
    sizes = {
        name: {part.part: part.parameters for part in one.parts} for name, one in planned.items()
    }
    assert sizes["vicuna-7b-qlora"]["lora"] == 159_907_840
    assert sizes["vicuna-7b-lora"]["lora"] == 2 * 159_907_840
    # 6.48 G in the layers' matrices: 2 bytes each, or half a byte and 0.127 bits.
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    held = {name: one.states[2].weights for name, one in planned.items() if "lora" in name}
    saved = held["vicuna-7b-lora"] - held["vicuna-7b-qlora"] - 2 * 159_907_840
    assert saved == pytest.approx(matrices * (2 - 0.5 - 0.127 / 8), rel=1e-4)
    assert list(planned["vicuna-7b-qlora"].states) == [0, 1, 2]
    full, lora = (planned[name].states[2] for name in ("vicuna-7b", "vicuna-7b-lora"))
    assert 15 * lora.optimizer < full.optimizer


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj"])
def test_activations_of_lora_are_about_those_that_autograd_keeps(
    targets: str, dropout: float, towers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builtin: Any = torch._C
    monkeypatch.setattr(torch.nn.functional, "linear", builtin._nn.linear)
    tokens, width = 256, 128
    text = tiny.text_config(hidden_size=width, intermediate_size=3 * width, num_key_value_heads=4)
    settings = LoraSettings(rank=8, dropout=dropout, targets=(targets,))
    kept: list[int] = []
    for layers in (2, 6):
        text.num_hidden_layers = layers
        model = tiny.model(text_config=text)
        add_lora(model, settings)
        apply_phase(model, "finetune")
        llm = model.model.language_model.train()
        embeddings = torch.randn(1, tokens, width, requires_grad=True)
        kept.append(saved_bytes(llm, inputs_embeds=embeddings, use_cache=False))
    shape = Shape.of(text, gated=True)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    every = {**dict.fromkeys(names, width), "down_proj": 3 * width}
    chosen = every if targets == "all-linear" else {"q_proj": width}
    planned = memory.activations(
        Shape(4, shape.width, shape.attention, shape.mlp, True, shape.vocabulary),
        tokens,
        precision="fp32",
        trains=False,
        checkpointing=False,
        lora=memory.lora_activations(chosen, 8, precision="fp32", dropout=dropout > 0),
    )
    # Of a feature dropped or not, torch keeps a byte on a GPU, and a float on a CPU.
    planned += 4 * tokens * 3 * sum(chosen.values()) * (dropout > 0)
    assert planned == pytest.approx(kept[1] - kept[0], rel=0.05)


def test_nothing_is_loaded(towers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "towers"
    for part in ("vision", "llm"):
        (folder / part).mkdir(parents=True)
        config = (towers / part / "config.json").read_bytes()
        (folder / part / "config.json").write_bytes(config)
    assert (
        plan(recipe_file(folder), "finetune").parts == plan(recipe_file(towers), "finetune").parts
    )


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters on 64 GPUs."""
    billions = 7_500_000_000
    states = model_states(billions, billions, zero_stage=stage, gpus=64, precision="bf16")
    assert states.total / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_frozen_parameters_have_weights_only() -> None:
    states = model_states(1000, 10, zero_stage=0, gpus=1, precision="fp16")
    assert (states.weights, states.gradients, states.optimizer) == (2000, 20, 120)
    full = model_states(1000, 10, zero_stage=2, gpus=4, precision="fp32")
    assert (full.weights, full.gradients, full.optimizer) == (4000, 10, 30)


def test_what_is_offloaded_is_on_the_host() -> None:
    def states(stage: int, offload: Any) -> memory.States:
        return model_states(100, 100, zero_stage=stage, gpus=2, precision="bf16", offload=offload)

    first = states(1, "optimizer")
    assert (first.weights, first.gradients, first.optimizer, first.host) == (200, 200, 0, 600)
    second = states(2, "optimizer")
    assert (second.total, second.host) == (200, 700)
    everything = states(3, "all")
    assert (everything.total, everything.host) == (0, 800)


def saved_bytes(model: Any, **batch: Any) -> int:
    """Bytes that autograd keeps in a forward pass beside the parameters."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**batch)  # what is kept lives as long as this
        total = sum(kept.values())
        del output
    return total


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("width", [64, 128])
def test_activations_are_about_those_that_autograd_keeps(
    width: int, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    # DeepSpeed's, which ZeRO-3 leaves in its place, keeps more of layers that do not train.
    builtin: Any = torch._C
    monkeypatch.setattr(torch.nn.functional, "linear", builtin._nn.linear)

    tokens = 256
    config = tiny.text_config(hidden_size=width, intermediate_size=3 * width, num_key_value_heads=4)
    kept: list[int] = []
    for layers in (2, 6):
        config.num_hidden_layers = layers
        model = LlamaForCausalLM(config).train().requires_grad_(trains)
        embeddings = torch.randn(1, tokens, width, requires_grad=True)
        kept.append(saved_bytes(model, inputs_embeds=embeddings, use_cache=False))
    shape = Shape.of(config, gated=True)
    planned = memory.activations(
        Shape(4, shape.width, shape.attention, shape.mlp, True, shape.vocabulary),
        tokens,
        precision="fp32",
        trains=trains,
        checkpointing=False,
    )
    assert planned == pytest.approx(kept[1] - kept[0], rel=0.05)


def test_checkpointing_keeps_the_layers_inputs() -> None:
    shape = Shape(layers=10, width=8, attention=8, mlp=16, gated=False, vocabulary=100)
    kept = memory.activations(shape, 5, precision="bf16", trains=True, checkpointing=True)
    assert kept == 5 * 10 * 2 * 8


def test_logits_are_there_in_float32_with_their_gradients() -> None:
    shape = Shape(layers=10, width=8, attention=8, mlp=16, gated=False, vocabulary=100)
    assert memory.logits(shape, 2, precision="bf16", pieces=False) == 100 * 2 * (2 + 12)
    assert memory.logits(shape, 2, precision="bf16", pieces=True) == 100 * 2 * (2 + 8)
    assert memory.logits(shape, 2, precision="fp32", pieces=True) == 100 * 2 * (4 + 4)


@pytest.mark.parametrize(
    ("working", "stay", "checkpointing", "most"),
    [
        (memory.Working(kept=40, layer=4, logits=30, tower=5), False, False, 100 + 40 + 30),
        (memory.Working(kept=40, layer=4, logits=30, tower=5), True, False, 120 + 40 + 30),
        (memory.Working(kept=40, layer=4, logits=1, tower=5), False, False, 100 + 40 + 4),
        (memory.Working(kept=8, layer=4, logits=1, tower=5), False, True, 120 + 2 * 4),
        (memory.Working(kept=8, layer=4, logits=1, tower=90), False, True, 100 + 90),
    ],
)
def test_the_peak_of_a_step_is_at_one_of_its_moments(
    working: memory.Working, stay: bool, checkpointing: bool, most: int
) -> None:
    states = memory.States(weights=30, gradients=20, optimizer=70)
    assert working.peak(states, gradients_stay=stay, checkpointing=checkpointing) == most


def test_logits_are_counted_up_to_a_piece(towers: Path) -> None:
    vocabulary = 320  # with rows for the placeholders
    path, most = recipe_file(towers), 2 * 4 * vocabulary
    whole = plan(path, "finetune")
    pieces = plan(path, "finetune", overrides=[f"batch.logits_mb={most / 1e6}"])
    shape = Shape(1, 1, 1, 1, False, vocabulary)
    of_two = memory.logits(shape, 2, precision="fp32", pieces=True)
    assert pieces.working[False].logits == of_two < whole.working[False].logits
    padded = plan(path, "finetune", overrides=[f"batch.logits_mb={most / 1e6}", PADDED])
    assert padded.working[False].logits > whole.working[False].logits


def test_memory_adds_up(towers: Path) -> None:
    planned = plan(recipe_file(towers), "finetune", gpus=4)
    working = planned.working[False]
    assert planned.memory() == working.peak(
        planned.states[0], gradients_stay=planned.accumulation > 1, checkpointing=False
    )
    assert planned.memory() >= planned.states[0].total
    assert planned.memory(3, True) < planned.memory(2, True) < planned.memory(0, False)
    assert planned.host_memory == 0


def test_steps_and_tokens_of_a_dataset(towers: Path, tmp_path: Path) -> None:
    rows.write_rows(tmp_path / "pairs", rows.pair_rows(100), levels=4)
    planned = plan(recipe_file(towers), "pretrain", data=tmp_path / "pairs")
    assert planned.data is not None
    assert 60 < planned.data.samples < 90  # a quarter is for validation, by hash of the ids
    assert planned.steps == planned.data.samples // 8
    # 9 image tokens, the alignment vector, and captions of 16 to 53 characters.
    assert 9 + 1 + 4 <= (planned.data.tokens_per_sample or 0) <= 9 + 1 + 14
    assert planned.samples == planned.data.samples // 8 * 8
    assert planned.tokens == planned.samples * (planned.data.tokens_per_sample or 0)


def test_steps_and_tokens_of_so_many_rows(towers: Path) -> None:
    file = recipe_file(towers)
    planned = plan(file, "finetune", rows=1000)
    assert planned.steps == (2 * (750 // 8))
    assert (planned.samples, planned.tokens) == (186 * 8, 186 * 8 * 64)
    assert plan(file, "finetune").steps is None
    assert plan(file, "finetune", overrides=["max_steps=5"]).samples == 40


def test_flops_count_what_trains(towers: Path) -> None:
    pretrain, finetune = (plan(recipe_file(towers), phase) for phase in PHASES)
    llm = next(part.parameters for part in pretrain.parts if part.part == "llm")
    assert (pretrain.flops_per_token, finetune.flops_per_token) == (4 * llm, 6 * llm)


def test_gpus_share_a_batch(towers: Path) -> None:
    file = recipe_file(towers)
    assert plan(file, "pretrain", gpus=2).accumulation == 2
    with pytest.raises(InputError, match=r"global_size 8 is no multiple of 6, .*2 times 3 GPUs"):
        plan(file, "pretrain", gpus=3)
    with pytest.raises(InputError, match=r"--gpus must be at least 1 \(got 0\)"):
        plan(file, "pretrain", gpus=0)


def test_data_that_does_not_fit(towers: Path, tmp_path: Path) -> None:
    rows.write_rows(tmp_path / "pairs", rows.pair_rows(20, levels=2), levels=2)
    with pytest.raises(InputError, match="level"):
        plan(recipe_file(towers), "pretrain", data=tmp_path / "pairs")
    with pytest.raises(InputError):
        plan(recipe_file(towers), "finetune", data=tmp_path / "pairs")


def test_a_name_of_the_hub_without_network_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As with HF_HUB_OFFLINE=1; otherwise the hub is tried for half a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"openai/clip-vit-large-patch14-336 .*no network"
    ) as caught:
        plan("vicuna-7b", "pretrain", gpus=8)
    assert "\n" not in str(caught.value)


def test_the_command_says_what_the_plan_holds(towers: Path) -> None:
    arguments = ["plan", "finetune", "--recipe", str(recipe_file(towers)), "--gpus", "2"]
    told = CliRunner().invoke(app, [*arguments, "--rows", "1000"]).stdout
    assert "adaptive, finetune, on 2 GPUs" in told
    assert re.search(r"^ *0 .* the recipe's$", told, re.MULTILINE)
    assert "186 steps of 8 samples (2 at a time on each GPU, 2 times)" in told
    assert "activations (" in told
    assert "steps" not in CliRunner().invoke(app, arguments).stdout


def test_zero_keeps_a_copy_in_float32_too() -> None:
    plain, spread = (
        model_states(10, 10, zero_stage=stage, gpus=1, precision="fp32").optimizer
        for stage in (0, 1)
    )
    assert (plain, spread) == (80, 120)
