"""Pictures at several scales: what S2 says, read a second time and plainly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alignshared import InputError
from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligntrain.model.adapter import load_adapter, save_adapter
from aligntrain.model.vision import image_features, multi_scale
from aligntrain.plan.estimate import plan
from aligntrain.recipes import load_recipe
from aligntrain.runs.folder import read_metrics
from aligntrain.train.checkpoint import check_fits, model_identity, newest_checkpoint
from aligntrain.train.metrics import Flops, Sums
from aligntrain.train.run import prepare, run
from tests.trainer import runs, tiny
from tests.trainer.model.test_modeling import batch, row
from tests.trainer.train.test_metrics import CPU, output
from tests.trainer.train.test_metrics import batch as counted

TILE = tiny.IMAGE_SIZE
SCALES = [TILE, 2 * TILE, 3 * TILE]
TOWERS = {"clip": tiny.vision_config, "siglip": tiny.siglip_config}


def pictures(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def plain_reading(
    tower: Any, picture: np.ndarray[Any, Any], scales: list[int], first: int
) -> np.ndarray[Any, Any]:
    """Features [L, widths] of `picture` [3, S, S]: Pillow resizes, loops cut, stitch and average.

    `first` is the first patch token.
    """
    columns: list[np.ndarray[Any, Any]] = []
    for scale in scales:
        channels = [
            np.asarray(Image.fromarray(channel).resize((scale, scale), Image.Resampling.BICUBIC))
            for channel in picture
        ]
        resized = np.stack(channels) if scale != picture.shape[1] else picture
        times = scale // TILE
        side = TILE // 4
        grid = np.zeros((times * side, times * side, 16), np.float32)
        for down in range(times):
            for right in range(times):
                tile = resized[
                    :, down * TILE : (down + 1) * TILE, right * TILE : (right + 1) * TILE
                ]
                with torch.no_grad():
                    hidden = tower(torch.from_numpy(tile[None].copy()), output_hidden_states=True)
                patches = hidden.hidden_states[-2][0, first:].numpy()
                for place, patch in enumerate(patches):
                    grid[down * side + place // side, right * side + place % side] = patch
        averaged = [
            grid[times * y : times * (y + 1), times * x : times * (x + 1)].mean(axis=(0, 1))
            for y in range(side)
            for x in range(side)
        ]
        columns.append(np.stack(averaged))
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("scales", [SCALES, [TILE, 3 * TILE], [2 * TILE]], ids=str)
def test_features_are_those_of_a_plain_reading(kind: str, scales: list[int]) -> None:
    model = tiny.model(vision_config=TOWERS[kind](), vision_scales=scales)
    tower, given = model.model.vision_tower, pictures(2, scales[-1])
    found = image_features(tower, given, model.config)
    assert found.shape == (2, tiny.IMAGE_TOKENS, 16 * len(scales))
    for one, picture in zip(found, given.numpy(), strict=True):
        read = plain_reading(tower, picture, scales, first=int(kind == "clip"))
        np.testing.assert_allclose(one.detach().numpy(), read, rtol=1e-4, atol=1e-5)


def test_one_scale_is_the_plain_path_to_the_bit() -> None:
    plain, scaled = tiny.model(), tiny.model(vision_scales=[TILE])
    given = batch(row(1, 2, 3)) | {"pixel_values": pictures(1, TILE)}
    assert torch.equal(scaled(**given).logits, plain(**given).logits)
    features = image_features(plain.model.vision_tower, given["pixel_values"], plain.config)

    def read(tiles: torch.Tensor) -> torch.Tensor:
        return image_features(plain.model.vision_tower, tiles, plain.config)

    assert torch.equal(multi_scale(given["pixel_values"], [TILE], TILE, read), features)


def test_each_picture_is_read_by_itself() -> None:
    model = tiny.model(vision_scales=SCALES)
    many = pictures(3, SCALES[-1])
    together = model.model.image_tokens(many)
    for one, features in zip(many, together, strict=True):
        torch.testing.assert_close(model.model.image_tokens(one[None])[0], features)


def test_the_tower_is_called_equally_often_for_any_batch() -> None:
    """Under ZeRO-3 each call gathers the tower's weights from all ranks."""
    model = tiny.model(vision_scales=SCALES).train()
    calls: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    counts: list[int] = []
    for images in (1, 3, 0):
        given = batch(row(1, 2, images=images))
        if images:
            given["pixel_values"] = pictures(images, SCALES[-1])
        calls.clear()
        model(**given)
        counts.append(len(calls))
    assert counts == [6, 6, 6]


def test_the_processor_makes_the_largest_picture(tmp_path: Path) -> None:
    model = tiny.model(vision_scales=SCALES)
    processor = tiny.processor(model.config)
    given = processor(text="<image>what?", images=tiny.picture(1, 90, 70))
    assert given["pixel_values"].shape == (1, 3, 36, 36)
    assert (given["input_ids"] == model.config.image_token_id).sum() == tiny.IMAGE_TOKENS
    expected = model(**given).logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path)
    again = AlignGPTProcessor.from_pretrained(tmp_path)
    assert loaded.config.vision_scales == SCALES
    same = again(text="<image>what?", images=tiny.picture(1, 90, 70))
    assert torch.equal(loaded(**same).logits, expected)
    new = loaded.generate(**same, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert new.shape[1] == same["input_ids"].shape[1] + 3


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"vision_scales": [TILE, 20]}, "multiples of the vision tower's 12 pixels"),
        ({"vision_scales": [24, 12]}, r"in ascending order, as in \[12, 24, 36\]"),
        ({"vision_scales": [12, 12]}, "ascending"),
        ({"vision_scales": []}, "multiples"),
        ({"vision_scales": SCALES, "vision_feature_select": "full"}, "patch tokens alone"),
    ],
)
def test_scales_that_make_no_sense_are_refused(choices: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny.config(**choices)


def test_pictures_of_another_size_are_refused() -> None:
    model = tiny.model(vision_scales=SCALES)
    with pytest.raises(InputError, match=r"reads \[images, 3, 36, 36\]"):
        model.model.image_tokens(pictures(1, TILE))


def test_an_adapter_of_other_scales_is_refused(tmp_path: Path) -> None:
    save_adapter(tiny.model(vision_scales=[12, 24]), tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match=r"vision_scales \[12, 24\], but the model has \[12, 36\]"):
        load_adapter(tiny.model(vision_scales=[12, 36]), tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match="but the model has None"):
        load_adapter(tiny.model(), tmp_path / "adapter.safetensors")


def test_flops_count_every_tile() -> None:
    """1 + 4 + 9 tiles."""
    given = counted([1], [10], images=1), output([1.0], [1])
    totals: list[float] = []
    for scales in (None, SCALES):
        sums = Sums(4, CPU)
        sums.add(*given)
        totals.append(Flops.of(tiny.model(vision_scales=scales)).count(sums))
    tower = sum(p.numel() for p in tiny.model().model.vision_tower.parameters())
    assert totals[1] - totals[0] == 13 * 2 * tower * tiny.IMAGE_TOKENS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    runs.recipe_file(place)
    runs.pairs(place / "pairs")
    runs.talks(place / "talks")
    return place


WITH_SCALES = "model.vision_scales=[12, 24, 36]"


def test_the_plan_counts_the_towers_passes(place: Path) -> None:
    planned = [
        plan(place / "tiny.yaml", "pretrain", overrides=[*more, "data.max_length=16"])
        for more in ([], [WITH_SCALES])
    ]
    assert [one.tiles_per_image for one in planned] == [1, 14]
    assert planned[1].flops_per_image == 14 * planned[0].flops_per_image
    towers = [one.working[False].tower for one in planned]
    assert towers[1] > 3 * towers[0]
    assert [one.image_tokens for one in planned] == [9, 9]
    # A wider projector is all that the model itself has more of.
    assert planned[1].parameters - planned[0].parameters == 2 * 16 * 32


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_both_phases_train_and_resume_to_the_bit(place: Path, tmp_path: Path, stage: int) -> None:
    options = [WITH_SCALES, f"zero_stage={stage}", "max_steps=4", "batch.micro_size=8"]
    first, second = tmp_path / "first", tmp_path / "second"
    recipe = place / "tiny.yaml"
    prepare("pretrain", place / "pairs", recipe=recipe, output=first, overrides=options)
    losses = runs.losses(runs.train(first))
    assert len(losses) == 4
    prepare(
        "finetune", place / "talks", recipe=recipe, output=second, overrides=options, start=first
    )
    whole = runs.losses(runs.train(second))
    half = newest_checkpoint(second)
    assert half is not None
    (half.folder / "complete.json").unlink()  # back to step 2
    (second / "finished.json").unlink()
    assert runs.losses(runs.train(second, resume=True)) == whole


def test_a_checkpoint_of_other_scales_is_refused(place: Path, tmp_path: Path) -> None:
    options = [WITH_SCALES, "max_steps=1"]
    folder, recipe = tmp_path / "run", place / "tiny.yaml"
    prepare("pretrain", place / "pairs", recipe=recipe, output=folder, overrides=options)
    runs.train(folder)
    saved = newest_checkpoint(folder)
    assert saved is not None
    other = tiny.model(vision_scales=[12, 36])
    with pytest.raises(
        InputError, match=r"its vision_scales is \[12, 24, 36\] and here it is \[12, 36\]"
    ):
        check_fits(saved, model_identity(other.config), load_recipe(recipe, "pretrain", options))
    with pytest.raises(InputError, match=r"model.vision_scales: \[12, 24, 36\] there, None here"):
        prepare("pretrain", place / "pairs", recipe=recipe, output=folder, overrides=options[1:])
    with pytest.raises(InputError, match=r"vision_scales \[12, 24, 36\], but the model has None"):
        prepare("finetune", place / "talks", recipe=recipe, output=tmp_path / "tuned", start=folder)
        runs.train(tmp_path / "tuned")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_learn_what_one_learns(place: Path, tmp_path: Path, forked: None) -> None:
    """One rank has pictures where the other has text."""
    given: dict[str, Any] = {
        "recipe": place / "tiny.yaml", "start": "none",
        "overrides": [WITH_SCALES, "zero_stage=3", "batch.micro_size=1",
                      "data.group_by_length=false", "max_steps=2"],
    }  # fmt: skip
    prepare("finetune", place / "talks", output=tmp_path / "one", **given)
    alone = runs.losses(runs.train(tmp_path / "one"))
    two = run("finetune", place / "talks", output=tmp_path / "two", nproc=2, **given)
    assert runs.losses(read_metrics(two.folder)) == pytest.approx(alone, abs=2e-5)
