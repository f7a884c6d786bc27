"""LoRA: what is put in, what of it learns, and what is left when it is merged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GemmaConfig,
    GPT2Config,
    PhiConfig,
    Qwen2Config,
)

from alignshared import AlignError, InputError
from aligntrain.export.model import merge
from aligntrain.inference.load import load_model
from aligntrain.model.lora import add_lora, load_lora, merge_lora, save_lora
from aligntrain.recipes.schema import LoraSettings, OptimizerSettings
from aligntrain.runs.folder import read_metrics
from aligntrain.train.checkpoint import checkpoints, newest_checkpoint
from aligntrain.train.metrics import Flops
from aligntrain.train.phases import apply_phase, parameter_groups, part_of, trained_parts
from aligntrain.train.run import prepare, run
from tests.trainer import runs, tiny

SMALL: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 257,
    "pad_token_id": 258, "initializer_range": 0.2,
}  # fmt: skip

FAMILIES = {
    "llama": lambda: tiny.text_config(),
    "llama, tied": lambda: tiny.text_config(tie_word_embeddings=True),
    "qwen2, tied": lambda: Qwen2Config(**SMALL, tie_word_embeddings=True),
    "gemma, tied": lambda: GemmaConfig(**SMALL, head_dim=16, tie_word_embeddings=True),
    "phi": lambda: PhiConfig(**SMALL),
    "gpt2, tied": lambda: GPT2Config(
        vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256,
        bos_token_id=256, eos_token_id=257,
    ),
}  # fmt: skip

LORA = ("lora.rank=4", "lora.dropout=0", "optimizer.llm_lr=1e-2")


def with_lora(model: Any, **settings: Any) -> Any:
    """`model` with LoRA that has learned something."""
    add_lora(model, LoraSettings(**{"rank": 4, "dropout": 0.0, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    return model


def logits(model: Any) -> torch.Tensor:
    """Of a question about a picture and of one without, as one batch."""
    batch = tiny.processor(model.config)(
        images=[tiny.picture(0)], text=["<image>\na kite", "no picture"], padding=True
    )
    with torch.no_grad():
        return model.eval()(**batch).logits[batch["attention_mask"].bool()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_gives_the_same_logits(family: str) -> None:
    model = tiny.model(text_config=FAMILIES[family]())
    names, before = list(model.state_dict()), logits(model)
    with_lora(model)
    learned = logits(model)
    assert (learned - before).abs().max() > 0.1
    assert merge_lora(model) > 0
    torch.testing.assert_close(logits(model), learned, atol=2e-5, rtol=1e-5)
    assert list(model.state_dict()) == names
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embeddings.weight) == ("tied" in family)


def test_new_lora_changes_nothing() -> None:
    model = tiny.model()
    before = logits(model)
    add_lora(model, LoraSettings())
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("targets", "count"),
    [("all-linear", 14), ("q_proj", 2), (["q_proj", "mlp.down_proj"], 4),
     ("layers.1.self_attn.v_proj", 1)],
)  # fmt: skip
def test_targets_are_ends_of_names(targets: Any, count: int) -> None:
    model = with_lora(tiny.model(), targets=targets)
    assert sum(".lora_A." in name for name, _ in model.named_parameters()) == count
    assert merge_lora(model) == count


@pytest.mark.parametrize("target", ["q_porj", "self_attn.q_porj"])
def test_an_unknown_target_is_told_with_its_neighbour(target: str) -> None:
    with pytest.raises(
        InputError, match=rf"{target}, which is no matrix .*; did you mean q_proj\?"
    ):
        add_lora(tiny.model(), LoraSettings(targets=(target,)))


def test_the_head_is_no_target() -> None:
    with pytest.raises(InputError, match="lm_head, which is no matrix"):
        add_lora(tiny.model(), LoraSettings(targets=("lm_head",)))
    with pytest.raises(InputError, match=r"there are down_proj, .* all-linear"):
        add_lora(tiny.model(), LoraSettings(targets=("xyz",)))


def test_of_the_llm_lora_alone_trains() -> None:
    model = with_lora(tiny.model())
    sizes = {size.part: size for size in apply_phase(model, "finetune")}
    trained = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"projector", "gate", "lora"}
    assert not sizes["llm"].trains
    # Two layers, rank 4: what each of the seven matrices reads and gives.
    reads_and_gives = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)
    assert sizes["lora"].parameters == 2 * 4 * reads_and_gives
    flops = Flops.of(model)
    assert (flops.llm_trains, flops.lora) == (False, sizes["lora"].parameters)
    settings = OptimizerSettings(lr=1e-4, llm_lr=2e-4)
    groups = {group["name"]: group["lr"] for group in parameter_groups(model, settings)}
    assert groups == {"projector": 1e-4, "gate": 1e-4, "lora": 2e-4}
    with pytest.raises(AlignError, match="LoRA has no place in pretrain"):
        trained_parts("pretrain", lora=True)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = with_lora(tiny.model())
    weights = {n: p.detach() for n, p in model.named_parameters() if part_of(n) == "lora"}
    save_lora(model, tmp_path, weights, base="somewhere")
    again = tiny.model()
    load_lora(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["base_model_name_or_path"]) == (4, 8, "somewhere")
    with pytest.raises(InputError, match="does not fit this LLM"):
        load_lora(tiny.model(text_config=tiny.text_config(hidden_size=64)), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        load_lora(tiny.model(), tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, two datasets, a pretrain run, and a LoRA run that nobody stopped."""
    place = tmp_path_factory.mktemp("place")
    recipe = runs.recipe_file(place)
    runs.pairs(place / "pairs")
    runs.talks(place / "talks")
    prepare(
        "pretrain", place / "pairs", recipe=recipe, output=place / "pretrain",
        overrides=["max_steps=2"],
    )  # fmt: skip
    runs.train(place / "pretrain")
    finetune(place, place / "lora", "lora.dropout=0.1")
    return place


def finetune(place: Path, output: Path, *overrides: str, **options: Any) -> dict[int, float]:
    """The losses of a LoRA run in `output`."""
    start, data = options.get("start", place / "pretrain"), options.get("data", place / "talks")
    prepare(
        "finetune", data, recipe=place / "tiny.yaml", output=output, start=start,
        overrides=[*LORA, *overrides],
    )  # fmt: skip
    return runs.losses(runs.train(output))


def test_it_learns_and_leaves_the_llm_as_it_was(place: Path, tmp_path: Path) -> None:
    losses = finetune(place, tmp_path / "run", "max_steps=12")
    assert losses[12] < losses[1] - 0.3
    model, _ = load_model(tmp_path / "run")
    held = dict(model.named_parameters())
    for name, value in load_file(place / "llm" / "model.safetensors").items():
        inner = f"model.language_model.{name}"
        ours = held.get(inner, held.get(inner.replace(".weight", ".base_layer.weight")))
        assert ours is not None
        assert torch.equal(ours[: len(value)], value), name  # and rows for the placeholders


# peft asks transformers in words that it will soon have forgotten.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_export_is_small_and_its_lora_is_peft_s(place: Path) -> None:
    from peft import PeftModel

    export = place / "lora" / "export"
    files = {file.relative_to(export).as_posix() for file in export.rglob("*") if file.is_file()}
    assert {"adapter.safetensors", "base.json", "config.json", "tokenizer.json"} <= files
    assert {"lora/adapter_config.json", "lora/adapter_model.safetensors"} <= files
    assert "model.safetensors" not in files
    for file in ("README.md", "config.json", "lora/adapter_config.json"):
        assert str(place) not in (export / file).read_text(encoding="utf-8"), file
    ours, _ = load_model(place / "lora")
    ids = torch.arange(24).view(1, -1)
    llm = AutoModelForCausalLM.from_pretrained(place / "llm")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(llm, export / "lora").eval()(input_ids=ids).logits
        assert torch.equal(ours(input_ids=ids).logits[..., : theirs.shape[-1]], theirs)


def test_merge_writes_what_a_full_run_would(place: Path, tmp_path: Path) -> None:
    done = merge(place / "lora", tmp_path / "merged")
    assert done.matrices == 14
    merged: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    unmerged, processor = load_model(place / "lora")
    torch.testing.assert_close(logits(merged), logits(unmerged), atol=2e-5, rtol=1e-5)
    assert processor.layout.image_tokens == merged.config.image_tokens
    theirs = {path.name for path in (place / "pretrain" / "export").iterdir()}
    assert {path.name for path in done.output.iterdir()} == theirs
    names = (set(load_file(folder / "model.safetensors"))
             for folder in (done.output, place / "pretrain" / "export"))  # fmt: skip
    assert next(names) == next(names)


def test_merge_refuses_what_it_cannot_do(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no LoRA to merge: it is a whole model"):
        merge(place / "pretrain", tmp_path / "merged")
    with pytest.raises(InputError, match="holds no finished model"):
        merge(place / "talks", tmp_path / "merged")
    (tmp_path / "thesis.tex").write_text("years of work")
    for there in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(InputError, match="exists already"):
            merge(place / "lora", there)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_base_that_has_moved_is_told(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "lora", tmp_path / "run")
    told = tmp_path / "run" / "export" / "base.json"
    content = json.loads(told.read_text())
    assert content["llm"] == str(place / "llm")
    told.write_text(json.dumps({**content, "llm": str(tmp_path / "nowhere")}))
    with pytest.raises(InputError, match=r"nowhere.*write its new place into .*base\.json"):
        merge(tmp_path / "run", tmp_path / "merged")
    told.write_text("[]")
    with pytest.raises(InputError, match="should name vision_tower, llm, model and choices"):
        load_model(tmp_path / "run")


def test_a_run_goes_on_from_a_merged_model_and_from_no_lora(place: Path, tmp_path: Path) -> None:
    for start in (place / "lora", place / "lora" / "export" / "adapter.safetensors"):
        with pytest.raises(InputError, match=r"is a LoRA run, .*`aligntrain merge .* OUTPUT`"):
            finetune(place, tmp_path / "run", start=start)
    merge(place / "lora", tmp_path / "merged")
    finetune(place, tmp_path / "run", "max_steps=1", start=tmp_path / "merged")
    # Its base is a whole model.
    again = merge(tmp_path / "run", tmp_path / "again")
    model: Any = AutoModelForImageTextToText.from_pretrained(again.output)
    unmerged, _ = load_model(tmp_path / "run")
    torch.testing.assert_close(logits(model), logits(unmerged), atol=2e-5, rtol=1e-5)


def stopped(place: Path, copy: Path) -> Path:
    """A copy of the LoRA run as if it had been killed in its fifth step."""
    shutil.copytree(place / "lora", copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    shutil.rmtree(copy / "export")
    (copy / "finished.json").unlink()
    return copy


def lora_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "export" / "lora" / "adapter_model.safetensors")


def test_resumed_to_the_bit(place: Path, tmp_path: Path) -> None:
    half = stopped(place, tmp_path / "half")
    resumed = runs.train(half, resume=True)
    assert runs.losses(resumed) == runs.losses(read_metrics(place / "lora"))
    ours, theirs = lora_of(half), lora_of(place / "lora")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_rank_is_another_recipe(place: Path, tmp_path: Path) -> None:
    half = stopped(place, tmp_path / "half")
    with pytest.raises(InputError, match=r"lora\.rank: 4 there, 8 here.* --output"):
        finetune(place, half, "lora.dropout=0.1", "lora.rank=8")


def test_checkpoints_hold_what_trains_alone(place: Path) -> None:
    checkpoint = newest_checkpoint(place / "lora")
    assert checkpoint is not None
    names: set[str] = set()
    for file in checkpoint.meta["files"]:
        with safe_open(checkpoint.folder / file, framework="pt") as opened:
            names |= {name.partition("/")[2] for name in opened.keys()}  # noqa: SIM118
    assert {part_of(name) for name in names} == {"projector", "gate", "lora"}


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_stages_give_the_same(place: Path, tmp_path: Path, stage: int) -> None:
    plain = finetune(place, tmp_path / "plain", "max_steps=3")
    spread = finetune(place, tmp_path / "spread", "max_steps=3", f"zero_stage={stage}")
    assert spread == pytest.approx(plain, abs=1e-4)
    ours, theirs = lora_of(tmp_path / "spread"), lora_of(tmp_path / "plain")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_gradient_checkpointing_changes_nothing(place: Path, tmp_path: Path, stage: int) -> None:
    options = (f"zero_stage={stage}", "max_steps=3")
    plain = finetune(place, tmp_path / "plain", *options)
    saving = finetune(place, tmp_path / "saving", *options, "gradient_checkpointing=true")
    assert saving == pytest.approx(plain, abs=1e-5)
    learned = [value for name, value in lora_of(tmp_path / "saving").items() if "lora_B" in name]
    assert all(value.abs().max() > 0 for value in learned)


def test_text_alone_and_no_table_train(place: Path, tmp_path: Path) -> None:
    runs.talks(tmp_path / "talks", 24, text_every=1)
    options = ("zero_stage=3", "max_steps=2", "model.mixing=none")
    losses = finetune(
        place, tmp_path / "run", *options, start="none", data=tmp_path / "talks"
    )  # fmt: skip
    assert len(losses) == 2
    assert load_model(tmp_path / "run")[0].config.mixing == "none"


def test_bf16_is_merged_in_bf16(place: Path, tmp_path: Path) -> None:
    finetune(place, tmp_path / "run", "precision=bf16", "max_steps=2")
    merged = load_file(merge(tmp_path / "run", tmp_path / "merged").output / "model.safetensors")
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    assert load_model(tmp_path / "run", dtype=torch.float32)[0].dtype == torch.float32


def test_four_bits_need_a_gpu(place: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"lora\.quantize 4bit needs a CUDA GPU"):
        finetune(place, tmp_path / "run", "lora.quantize=4bit")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.nightly), 3])
def test_two_processes_resume_as_one_and_one_as_two(
    place: Path, tmp_path: Path, forked: None, stage: int
) -> None:
    output, whole = tmp_path / "run", finetune(place, tmp_path / "whole")
    for nproc, kept in ((2, 2), (1, 4), (2, 6)):
        run(
            "finetune", place / "talks", recipe=place / "tiny.yaml", start=place / "pretrain",
            output=output, nproc=nproc, resume=True,
            overrides=[*LORA, f"zero_stage={stage}", "checkpoint.keep=9"],
        )  # fmt: skip
        assert runs.losses(read_metrics(output)) == pytest.approx(whole, abs=1e-4)
        for later in checkpoints(output):
            if later.step > kept:
                shutil.rmtree(later.folder)
        (output / "finished.json").unlink()
    ours, theirs = lora_of(output), lora_of(tmp_path / "whole")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-3, rtol=1e-3)
