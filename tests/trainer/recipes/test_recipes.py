"""Recipes: what ships, what may be written, and what is said of what may not."""

import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignshared import InputError
from aligntrain.recipes import PHASES, Phase, dump, load_recipe, loads, recipe_names, schema
from aligntrain.recipes.load import read_yaml, write_yaml

MINIMAL = """
common:
  model: {vision_tower: demo, llm: demo}
  data: {}
  batch: {global_size: 8, micro_size: 4}
pretrain:
  optimizer: {lr: 1e-3}
finetune:
  optimizer: {lr: 2e-5}
"""


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problem(file: Any, *overrides: str, phase: Phase | None = "pretrain") -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(file, phase, overrides)
    return str(caught.value)


def test_the_recipes_that_ship() -> None:
    assert recipe_names() == [
        "demo", "demo-smollm2", "gemma3-1b", "llama3-8b", "llama3.2-1b", "llama3.2-3b",
        "qwen2.5-7b", "qwen2.5-7b-siglip", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b",
        "smollm2-1.7b", "smollm3-3b", "vicuna-13b", "vicuna-7b", "vicuna-7b-lora",
        "vicuna-7b-qlora", "vicuna-7b-s2", "vicuna-7b-siglip",
    ]  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_reads_back_equal(name: str, phase: Phase, tmp_path: Path) -> None:
    recipe = load_recipe(name, phase)
    assert (recipe.name, recipe.phase) == (name, phase)
    assert loads(dump(recipe)) == recipe
    saved = written(tmp_path, dump(recipe), "recipe.yaml")
    assert load_recipe(saved, None) == recipe
    assert load_recipe(saved, phase) == recipe


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith("demo")])
def test_the_settings_of_the_paper(name: str) -> None:
    pretrain, finetune = load_recipe(name, "pretrain"), load_recipe(name, "finetune")
    assert (pretrain.optimizer.lr, finetune.optimizer.lr) == (1e-3, 2e-5)
    assert (pretrain.batch.global_size, finetune.batch.global_size) == (256, 128)
    small = re.search(r"-[01](\.\d)?b$", name) is not None
    assert (pretrain.zero_stage, finetune.zero_stage) == (2, 2 if finetune.lora or small else 3)
    assert (pretrain.data.aspect, finetune.data.aspect) == ("crop", "pad")
    assert (pretrain.data.template, pretrain.data.group_by_length) == ("plain", False)
    assert finetune.data.template in ("vicuna_v1", "chat")
    assert finetune.data.group_by_length
    assert finetune.gradient_checkpointing
    for recipe in (pretrain, finetune):
        assert recipe.model.levels == 8
        assert recipe.model.mixing == "adaptive"
        assert recipe.precision == "bf16"
        assert recipe.data.max_length == 2048
        assert (recipe.epochs, recipe.max_steps) == (1, None)
        assert recipe.optimizer.warmup_ratio == 0.03
        assert recipe.optimizer.schedule == "cosine"
        assert recipe.optimizer.weight_decay == 0


def test_a_phase_is_laid_over_common_key_by_key(tmp_path: Path) -> None:
    text = MINIMAL + "  data: {workers: 1}\n  batch: {micro_size: 2}\n"
    finetune = load_recipe(written(tmp_path, text), "finetune")
    assert (finetune.name, finetune.data.workers) == ("mine", 1)
    assert (finetune.batch.global_size, finetune.batch.micro_size) == (8, 2)
    assert load_recipe(tmp_path / "mine.yaml", "pretrain").batch.micro_size == 4


def test_a_recipe_goes_on_from_another(tmp_path: Path) -> None:
    written(tmp_path, MINIMAL, "first.yaml")
    written(tmp_path, "base: first.yaml\ncommon: {optimizer: {lr: 7e-4}}", "second.yaml")
    third = written(tmp_path, "base: second.yaml\nfinetune: {seed: 3}", "third.yaml")
    assert [load_recipe(third, phase).optimizer.lr for phase in PHASES] == [7e-4, 7e-4]
    assert [load_recipe(third, phase).seed for phase in PHASES] == [0, 3]
    of_shipped = written(tmp_path, "base: vicuna-7b\ncommon: {model: {llm: ../llm}}")
    expected = load_recipe("vicuna-7b", "finetune", ["model.llm=../llm"])
    assert load_recipe(of_shipped, "finetune") == expected.model_copy(update={"name": "mine"})


def test_bases_that_go_in_a_circle(tmp_path: Path) -> None:
    first = written(tmp_path, "base: second.yaml", "first.yaml")
    written(tmp_path, "base: first.yaml", "second.yaml")
    assert "itself" in problem(first)


def test_overrides_have_the_types_of_yaml() -> None:
    recipe = load_recipe(
        "vicuna-7b",
        "pretrain",
        ["optimizer.lr=3e-4", "max_steps=5", "gradient_checkpointing=false", "model.mixing=none",
         "optimizer.betas=[0.9, 0.95]", "data={workers: 0}", "optimizer.gate_lr=1"],
    )  # fmt: skip
    assert recipe.optimizer.lr == 3e-4
    assert recipe.max_steps == 5
    assert recipe.gradient_checkpointing is False
    assert recipe.model.mixing == "none"
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert (recipe.data.workers, recipe.data.template) == (0, "plain")
    assert recipe.optimizer.gate_lr == 1
    again = load_recipe("vicuna-7b", "pretrain", ["max_steps=5", "max_steps=null"])
    assert again == load_recipe("vicuna-7b", "pretrain")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimzer.lr=1", "unknown key optimzer.lr; did you mean optimizer.lr?"),
        ("lr=1", "unknown key lr; did you mean optimizer.lr?"),
        ("model={lvels: 4}", "unknown key model.lvels; did you mean model.levels?"),
        ("batch.micro=4", "unknown key batch.micro; did you mean batch.micro_size?"),
        ("zzz=4", "unknown key zzz; there are model, data, optimizer"),
        ("phase=finetune", "unknown key phase"),
        ("optimizer.lr=fast", "optimizer.lr in --set optimizer.lr=fast should be a valid number"),
        ("optimizer.lr=0", "should be greater than 0, not 0"),
        ("optimizer.lr=.nan", "should be a finite number, not nan"),
        ("data.workers=1.5", "should be a valid integer, not 1.5"),
        ("data.workers=true", "should be a valid integer, not True"),
        ("gradient_checkpointing=1", "should be a valid boolean, not 1"),
        (
            "model.mixing=nne",
            "should be 'adaptive', 'local', 'global', 'mean' or 'none', not 'nne'",
        ),
        ("model.levels=1", "should be greater than or equal to 2"),
        ("model.llm=7", "should be a valid string, not 7"),
        ("zero_stage=4", "should be less than or equal to 3"),
        ("model=3", "model in --set model=3 should be a section with keys of its own, not 3"),
        ("batch.global_size=100", "global_size 100 should be a multiple of micro_size 32"),
        ("offload=all", "offload all should have zero_stage 3 or more, not 2"),
        ("max_steps", "--set max_steps sets nothing; write --set section.key=value"),
        ("data={a", "is not valid YAML in line 1"),
    ],
)
def test_overrides_that_cannot_be(override: str, said: str) -> None:
    sentence = problem("vicuna-7b", override)
    assert said in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            MINIMAL.replace("micro_size", "micro_sise"),
            "unknown key batch.micro_sise; did you mean batch.micro_size",
        ),
        (
            MINIMAL.replace("finetune:", "fine_tune:"),
            "unknown key fine_tune; did you mean finetune",
        ),
        (MINIMAL.replace("{lr: 2e-5}", "{}"), "mine.yaml (finetune) lacks the key optimizer.lr"),
        (MINIMAL.replace("1e-3", "high"), "(pretrain) should be a valid number, not 'high'"),
        (MINIMAL + "seed: 3\n", "has the key seed outside of a section; move it under common"),
        (MINIMAL + "pretrain: {}\n", "line 10: the key pretrain occurs twice"),
        ("- demo", "should be a YAML mapping"),
        ("", "should be a YAML mapping"),
        ("common: [1", "is not valid YAML"),
        ("base: vicuna", "there is no recipe and no file"),
    ],
)
def test_files_that_cannot_be(text: str, said: str, tmp_path: Path) -> None:
    sentence = problem(written(tmp_path, text))
    assert said in sentence
    assert str(tmp_path) in sentence


def test_a_slip_in_the_other_phase_shows_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, MINIMAL.replace("2e-5", "slow"))
    assert "(finetune)" in problem(file, phase="pretrain")


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    assert "did you mean vicuna-7b?" in problem("vicuna7b")
    assert "there are demo, demo-smollm2, gemma3-1b" in problem(tmp_path / "zzz.yaml")
    assert "there is no recipe and no file" in problem(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a recipe" in problem(binary)


def test_a_saved_recipe_is_of_one_phase(tmp_path: Path) -> None:
    saved = written(tmp_path, dump(load_recipe("demo", "pretrain")))
    assert "give the recipe that it was made from, demo" in problem(saved, phase="finetune")
    assert "say which: pretrain or finetune" in problem("demo", phase=None)
    assert load_recipe(saved, "pretrain", ["max_steps=3"]).max_steps == 3


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
words = names | st.sampled_from(
    ["1e-3", "1e3", "yes", "null", "~", "0x1f", ".5e1", "-1e+5", "none"]
)


@given(llm=words, rate=st.floats(min_value=1e-300, max_value=1e300), steps=st.integers(1, 10**9))
def test_any_resolved_recipe_reads_back_equal(llm: str, rate: float, steps: int) -> None:
    recipe = load_recipe("demo", "pretrain")
    model = recipe.model.model_copy(update={"llm": llm})
    optimizer = recipe.optimizer.model_copy(update={"lr": rate})
    changed = recipe.model_copy(update={"model": model, "optimizer": optimizer, "max_steps": steps})
    assert loads(dump(changed)) == changed


@pytest.mark.parametrize("number", ["1e-3", "1E3", "-2.5e+4", ".5e1", "1.e2"])
def test_numbers_of_yaml_are_those_of_version_1_2(number: str) -> None:
    assert read_yaml(number) == float(number)
    assert read_yaml(write_yaml({"text": number})) == {"text": number}
    assert math.isinf(read_yaml(".inf"))


def test_the_words_are_those_of_the_model() -> None:
    from aligntrain.prompts import templates

    data = schema.DataSettings.model_fields
    assert get_args(data["template"].annotation) == get_args(templates.TemplateName)


def test_the_lora_that_llava_published() -> None:
    for name, quantize in (("vicuna-7b-lora", "none"), ("vicuna-7b-qlora", "4bit")):
        finetune = load_recipe(name, "finetune")
        assert finetune.lora is not None
        assert (finetune.lora.rank, finetune.lora.scale, finetune.lora.dropout) == (128, 256, 0.05)
        assert finetune.lora.quantize == quantize
        assert (finetune.optimizer.llm_lr, finetune.optimizer.lr) == (2e-4, 2e-5)
        assert load_recipe(name, "pretrain").lora is None
    by_hand = load_recipe(
        "vicuna-7b", "finetune", ["lora.rank=128", "optimizer.llm_lr=2e-4", "zero_stage=2"]
    )
    assert by_hand.lora is not None
    assert (by_hand.lora.scale, by_hand.lora.targets) == (256, ("all-linear",))
    same = by_hand.model_copy(
        update={"name": "vicuna-7b-lora", "lora": by_hand.lora.model_copy(update={"alpha": 256})}
    )
    assert same == load_recipe("vicuna-7b-lora", "finetune")
    assert load_recipe("vicuna-7b", "finetune", ["lora={rank: 8}", "lora=null"]).lora is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.rank=0", "lora.rank in --set lora.rank=0 should be greater than 0, not 0."),
        ("lora.rnak=8", "unknown key lora.rnak; did you mean lora.rank?"),
        ("lora.alpha=0", "lora.alpha in --set lora.alpha=0 should be greater than 0"),
        ("lora.dropout=1", "lora.dropout in --set lora.dropout=1 should be less than 1"),
        ("lora.targets=[]", "lora.targets in --set lora.targets=[] "),
        ("lora.quantize=8bit", "lora.quantize in --set lora.quantize=8bit should be 'none' or"),
        ("lora=128", "lora in --set lora=128 should be a section with keys of its own"),
        ("lora.quantize=4bit", "lora.quantize 4bit should have zero_stage 2 or less, not 3"),
    ],
)
def test_what_lora_may_not_be(override: str, says: str) -> None:
    assert says in problem("vicuna-7b", override, phase="finetune")


def test_zero_3_leaves_nothing_to_compile() -> None:
    says = "compile should have zero_stage 2 or less, not 3"
    assert says in problem("vicuna-7b", "compile=true", phase="finetune")
    assert load_recipe("vicuna-7b", "finetune", ["compile=true", "zero_stage=2"]).compile


def test_lora_has_no_place_in_pretraining(tmp_path: Path) -> None:
    says = "sets lora in pretrain, where the LLM does not train; set it in finetune alone."
    assert says in problem("vicuna-7b", "lora.rank=8")
    # A slip in one phase shows in the other.
    in_common = written(tmp_path, "base: vicuna-7b\ncommon: {lora: {rank: 8}}")
    assert says in problem(in_common, phase="finetune")


@pytest.mark.parametrize(
    ("gpu", "features", "expected"),
    [
        (None, {"avx512_bf16": True}, "bf16"),
        (None, {"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        (None, {"avx2": True, "avx512_bf16": False}, "fp32"),
        (True, {}, "bf16"),
        (False, {"avx512_bf16": True}, "fp16"),
    ],
)
def test_automatic_precision_is_what_the_machine_computes(
    gpu: bool | None, features: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gpu` is whether one computes bf16, None without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert load_recipe("demo", "pretrain", ["precision=auto"]).precision == expected
    assert load_recipe("demo", "pretrain").precision == "fp32"
