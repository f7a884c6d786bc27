"""The models that recipes name: their published sizes, and that they fit where the recipes say."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3Config,
    SiglipVisionConfig,
    SmolLM3Config,
)

from aligntrain.plan.estimate import plan
from aligntrain.recipes import PHASES, load_recipe

HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")


def llm(config: Any, sizes: tuple[int, ...], heads: tuple[int, ...], **more: Any) -> Any:
    fields = dict(zip(SIZES, sizes, strict=True)) | dict(zip(HEADS, heads, strict=True))
    return config(**fields, **{"tie_word_embeddings": True, **more})


# Each with the parameters that its page on the Hub states.
LLMS: dict[str, tuple[Any, int]] = {
    "qwen3-0.6b": (llm(Qwen3Config, (151936, 1024, 3072, 28), (16, 8, 128)), 596_049_920),
    "qwen3-1.7b": (llm(Qwen3Config, (151936, 2048, 6144, 28), (16, 8, 128)), 1_720_574_976),
    "qwen3-4b": (llm(Qwen3Config, (151936, 2560, 9728, 36), (32, 8, 128)), 4_022_468_096),
    "qwen3-8b": (
        llm(Qwen3Config, (151936, 4096, 12288, 36), (32, 8, 128), tie_word_embeddings=False),
        8_190_735_360,
    ),
    "smollm3-3b": (llm(SmolLM3Config, (128256, 2048, 11008, 36), (16, 4, 128)), 3_075_098_624),
    "smollm2-1.7b": (llm(LlamaConfig, (49152, 2048, 8192, 24), (32, 32, 64)), 1_711_376_384),
    "llama3.2-1b": (llm(LlamaConfig, (128256, 2048, 8192, 16), (32, 8, 64)), 1_235_814_400),
    "llama3.2-3b": (llm(LlamaConfig, (128256, 3072, 8192, 28), (24, 8, 128)), 3_212_749_824),
    "gemma3-1b": (llm(Gemma3TextConfig, (262144, 1152, 6912, 26), (4, 1, 256)), 999_885_952),
}
TOWERS = {
    "google/siglip2-so400m-patch14-384": SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
        image_size=384, patch_size=14,
    ),
    "google/siglip2-base-patch16-256": SiglipVisionConfig(image_size=256, patch_size=16),
}  # fmt: skip


@pytest.mark.parametrize("name", LLMS)
def test_a_model_of_this_year_fits(name: str, tmp_path: Path) -> None:
    config, parameters = LLMS[name]
    config.save_pretrained(tmp_path / "llm")
    tower = load_recipe(name, "pretrain").model.vision_tower
    TOWERS[tower].save_pretrained(tmp_path / "tower")
    folders = [f"model.llm={tmp_path / 'llm'}", f"model.vision_tower={tmp_path / 'tower'}"]
    for phase in PHASES:
        planned = plan(name, phase, gpus=8, overrides=folders)
        sizes = {part.part: part.parameters for part in planned.parts}
        # And the rows of at most 64 tokens, for the placeholders.
        assert 0 <= sizes["llm"] - parameters <= 2 * 64 * config.hidden_size
        assert planned.image_tokens <= 196
        assert planned.memory() < 0.8 * 80e9
        assert planned.recipe.batch.global_size % (8 * planned.recipe.batch.micro_size) == 0
        if name == "qwen3-0.6b":  # as its description says
            assert plan(name, phase, overrides=folders).memory() < 0.8 * 24e9
