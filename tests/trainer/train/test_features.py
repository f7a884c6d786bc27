"""Features of images that come again are computed once, and change nothing."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alignshared import InputError
from aligntrain.model.vision import image_features
from aligntrain.recipes import load_recipe
from aligntrain.runs.folder import read_metrics
from aligntrain.train.features import FeatureCache
from aligntrain.train.run import prepare
from tests.trainer import runs, tiny


def counted(model: Any) -> list[int]:
    """The number of images of each pass through the tower of `model`, from now on."""
    passes: list[int] = []
    model.vision_tower.register_forward_pre_hook(
        lambda _module, args: passes.append(len(args[0])), with_kwargs=False
    )
    return passes


def test_an_image_is_computed_once() -> None:
    model = tiny.model().model
    pixels = torch.randn(4, 3, *model.config.image_size)
    expected = image_features(model.vision_tower, pixels, model.config)
    passes, cache = counted(model), FeatureCache(10**6)
    first = cache(model.vision_tower, pixels, model.config)
    again = cache(model.vision_tower, pixels[[2, 2, 0]], model.config)
    assert passes == [1, 1, 1, 1]
    torch.testing.assert_close(first, expected)
    assert torch.equal(again, first[[2, 2, 0]])


def test_what_does_not_fit_is_computed_again() -> None:
    model = tiny.model().model
    pixels = torch.randn(2, 3, *model.config.image_size)
    one = image_features(model.vision_tower, pixels[:1], model.config).nbytes
    passes, cache = counted(model), FeatureCache(one)
    cache(model.vision_tower, pixels, model.config)
    cache(model.vision_tower, pixels, model.config)
    assert cache.used == one
    assert len(passes) == 3


def test_a_run_is_the_same_with_it_and_resumes_to_the_bit(tmp_path: Path) -> None:
    recipe = runs.recipe_file(tmp_path)
    runs.pairs(tmp_path / "pairs")
    lines = {}
    for name, size in {"without": 0.0, "with": 1.0}.items():
        prepare(
            "pretrain", tmp_path / "pairs", recipe=recipe, output=tmp_path / name,
            overrides=[f"data.feature_cache_mb={size}"],
        )  # fmt: skip
        lines[name] = runs.train(tmp_path / name)
    assert runs.losses(lines["with"]) == pytest.approx(runs.losses(lines["without"]), abs=1e-5)
    whole = tmp_path / "with"
    half = shutil.copytree(whole, tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "step-00000006")
    shutil.rmtree(half / "export")
    (half / "finished.json").unlink()
    runs.train(half, resume=True)
    assert runs.losses(read_metrics(half)) == runs.losses(lines["with"])


def test_ranks_that_share_the_tower_cannot_skip_it() -> None:
    with pytest.raises(InputError, match="feature_cache_mb should be 0 with zero_stage 3"):
        load_recipe("demo", "pretrain", ["data.feature_cache_mb=1", "zero_stage=3"])
