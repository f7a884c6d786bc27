"""Pixel shuffle: squares of neighbouring patches as one token, against a plain reading of that."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, SiglipVisionConfig

from alignshared import InputError
from aligntrain.model import AlignGPTForConditionalGeneration
from aligntrain.model.adapter import load_adapter, save_adapter
from aligntrain.model.vision import image_features
from aligntrain.train.metrics import Flops
from aligntrain.train.run import prepare
from tests.trainer import runs, tiny

SIZE, PATCH, WIDTH = 24, 4, 16
"""6 x 6 patches."""
SIZES = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH,
}  # fmt: skip
TOWERS = {"clip": CLIPVisionConfig(**SIZES), "siglip": SiglipVisionConfig(**SIZES)}


def shuffled(patches: np.ndarray, side: int) -> np.ndarray:
    """Tokens of `patches` [P, width], put together one by one."""
    columns = SIZE // PATCH
    tokens = []
    for top in range(0, columns, side):
        for left in range(0, columns, side):
            square = [
                patches[columns * (top + down) + left + right]
                for down in range(side)
                for right in range(side)
            ]
            tokens.append(np.concatenate(square))
    return np.stack(tokens)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("scales", [None, [SIZE, 2 * SIZE]], ids=str)
@pytest.mark.parametrize("side", [2, 3, 6])
def test_tokens_are_those_of_a_plain_reading(
    kind: str, scales: list[int] | None, side: int
) -> None:
    choices = {"vision_config": TOWERS[kind], "vision_scales": scales}
    model = tiny.model(**choices, vision_pixel_shuffle=side)
    size = scales[-1] if scales else SIZE
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tower, config = model.model.vision_tower, model.config
    tokens = image_features(tower, images, config)
    assert tokens.shape == (2, config.image_tokens, config.feature_width)
    assert config.image_tokens == 36 // side**2
    config.vision_pixel_shuffle = 1
    patches = image_features(tower, images, config)
    for own, read in zip(tokens.detach().numpy(), patches.detach().numpy(), strict=True):
        np.testing.assert_array_equal(own, shuffled(read, side))


def test_a_saved_model_and_its_processor_agree_on_the_tokens(tmp_path: Path) -> None:
    model = tiny.model(vision_pixel_shuffle=3)  # of 3 x 3 patches
    processor = tiny.processor(model.config)
    given = processor(text="<image>what?", images=tiny.picture(1, 90, 70))
    assert (given["input_ids"] == model.config.image_token_id).sum() == 1
    model.save_pretrained(tmp_path)
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**given).logits, model(**given).logits)


def test_the_tower_costs_what_it_costs_without() -> None:
    plain, joined = (
        Flops.of(tiny.model(vision_config=TOWERS["clip"], vision_pixel_shuffle=side))
        for side in (1, 2)
    )
    assert joined.vision_tokens == plain.vision_tokens == 36


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"vision_pixel_shuffle": 4}, "into 6 x 6 patches; give a number that divides both"),
        ({"vision_pixel_shuffle": 0}, "vision_pixel_shuffle is 0"),
        (
            {"vision_pixel_shuffle": 2, "vision_feature_select": "full"},
            "goes with the patch tokens alone",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(choices: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        tiny.model(vision_config=TOWERS["clip"], **choices)


def test_an_adapter_of_other_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(tiny.model(vision_config=TOWERS["clip"], vision_pixel_shuffle=2), path)
    with pytest.raises(InputError, match="vision_pixel_shuffle 2, but the model has 3"):
        load_adapter(tiny.model(vision_config=TOWERS["clip"], vision_pixel_shuffle=3), path)


def test_both_phases_train(tmp_path: Path) -> None:
    """Tiny's tower has 3 x 3 patches: an image is one token."""
    options = ["model.vision_pixel_shuffle=3", "max_steps=2"]
    recipe = runs.recipe_file(tmp_path)
    runs.pairs(tmp_path / "pairs")
    runs.talks(tmp_path / "talks")
    first, second = tmp_path / "first", tmp_path / "second"
    prepare("pretrain", tmp_path / "pairs", recipe=recipe, output=first, overrides=options)
    assert len(runs.losses(runs.train(first))) == 2
    prepare(
        "finetune", tmp_path / "talks", recipe=recipe, output=second, overrides=options,
        start=first,
    )  # fmt: skip
    assert len(runs.losses(runs.train(second))) == 2
