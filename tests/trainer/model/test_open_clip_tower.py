"""An open_clip tower in transformers' form gives open_clip's own hidden states."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file

from alignshared import InputError
from aligntrain.model import open_clip as converted
from tests.trainer import tiny

PREPROCESS = {
    "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic",
    "resize_mode": "shortest",
}  # fmt: skip


def write(folder: Path, quick_gelu: bool = False, **vision: Any) -> Any:
    """A random CLIP in the demo CLIP's form: fp16 weights beside a configuration."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    config: dict[str, Any] = {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": 12, "patch_size": 4, "width": 32, "layers": 3, "head_width": 16, **vision,
        },
        "text_cfg": {
            "context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    model = open_clip.CLIP(**config).eval()
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "open_clip_model.safetensors")
    described = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return model


def hidden_states(visual: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """What goes into each of open_clip's blocks and out of the last, [B, tokens, width]."""
    states: list[torch.Tensor] = []
    blocks = visual.transformer.resblocks
    hooks = [block.register_forward_pre_hook(lambda _, a: states.append(a[0])) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(lambda _, a, out: states.append(out)))
    visual(pixels)
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize("quick_gelu", [False, True])
@torch.no_grad()
def test_hidden_states_are_open_clips(tmp_path: Path, quick_gelu: bool) -> None:
    model = write(tmp_path, quick_gelu)
    tower = converted.load_vision_tower(tmp_path)
    pixels = torch.randn(2, 3, 12, 12)
    ours = tower(pixels, output_hidden_states=True).hidden_states
    theirs = hidden_states(model.visual, pixels)
    assert len(ours) == len(theirs) == 4
    for mine, his in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-5)


def test_pictures_are_seen_as_open_clip_sees_them(tmp_path: Path) -> None:
    write(tmp_path)
    transform = image_transform_v2(PreprocessCfg(size=12, **PREPROCESS), is_train=False)
    picture = tiny.picture(3, width=31, height=20)
    ours = converted.image_processor(tmp_path)(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours, transform(picture), rtol=1e-4, atol=1e-4)


def test_towers_that_are_no_plain_transformer_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "open_clip_config.json"
    described = json.loads(path.read_text())
    described["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base"
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match="timm_model_name"):
        converted.vision_config(tmp_path)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "open_clip_config.json"
    path.write_text(path.read_text().replace('"width": 32', '"width": 64'))
    with pytest.raises(InputError, match="does not fit"):
        converted.load_vision_tower(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no open_clip_model"):
        converted.load_vision_tower(tmp_path)
