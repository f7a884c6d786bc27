# transformers types its classes for its own use.
# pyright: reportPrivateImportUsage=false
# pyright: reportPrivateUsage=false
"""Vision tower of an open_clip folder as a CLIPVisionModel of transformers.

Reads `open_clip_config.json` and `open_clip_model.safetensors`; open_clip itself is not needed.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from alignshared import InputError
from alignshared.errors import one_line

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"

_RESAMPLE = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}
_FOREIGN = {
    "act_kwargs", "input_patchnorm", "ls_init_value", "no_ln_pre", "norm_kwargs", "timm_model_name",
}  # fmt: skip
"""Options of open_clip's towers without an equivalent in CLIPVisionModel."""

_LAYER_NAMES = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
"""CLIPVisionModel's names in a layer, with open_clip's."""


def is_open_clip(folder: str | Path) -> bool:
    """Return whether `folder` was saved by open_clip."""
    return (Path(folder) / CONFIG_FILE).is_file()


def vision_config(folder: str | Path) -> CLIPVisionConfig:
    """Return the configuration of the tower in `folder`, a plain vision transformer."""
    model = _read_config(folder)["model_cfg"]
    vision: dict[str, Any] = model["vision_cfg"]
    foreign = sorted(key for key, value in vision.items() if value and key in _FOREIGN)
    if foreign or not isinstance(vision["layers"], int):
        named = ", ".join(foreign) or "convolutional layers"
        raise InputError(
            f"the vision tower of {folder} is no plain vision transformer ({named}); give a "
            "transformers folder of it instead."
        )
    width = vision["width"]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
        num_hidden_layers=vision["layers"],
        num_attention_heads=width // vision.get("head_width", 64),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        projection_dim=model["embed_dim"],
        hidden_act="quick_gelu" if model.get("quick_gelu", False) else "gelu",
        layer_norm_eps=1e-5,
    )


def load_vision_tower(
    folder: str | Path, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> CLIPVisionModel:
    """Load the vision tower in `folder` in `dtype`; `kwargs` go to the model.

    Raises:
        InputError: the weights file is missing or does not fit the configuration.
    """
    config = vision_config(folder)
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no {WEIGHTS_FILE}; put open_clip's weights there.")
    tower = CLIPVisionModel._from_config(config, dtype=dtype, **kwargs)
    with safe_open(path, framework="pt") as file:
        weights = {
            name.removeprefix("visual."): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.startswith("visual.")
        }
    # Whether the parameters have the tower's name as prefix depends on transformers' version.
    nested = any(name.startswith("vision_model.") for name in tower.state_dict())
    prefix = "vision_model." if nested else ""
    try:
        renamed = {prefix + name: value for name, value in _renamed(weights, config).items()}
        tower.load_state_dict(renamed, strict=True)
    except (KeyError, RuntimeError) as error:
        detail = one_line(error, 200)
        raise InputError(f"{path} does not fit {CONFIG_FILE} beside it: {detail}.") from error
    return tower.eval()


def image_processor(folder: str | Path) -> CLIPImageProcessorPil:
    """Return the processor that equals open_clip's evaluation transform; InputError if none can."""
    config = _read_config(folder)
    preprocess: dict[str, Any] = config.get("preprocess_cfg", {})
    size: int = config["model_cfg"]["vision_cfg"]["image_size"]
    mode = preprocess.get("resize_mode", "shortest")
    interpolation = preprocess.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or interpolation not in _RESAMPLE:
        raise InputError(
            f"{folder} resizes images by {mode} and {interpolation}; transformers' CLIP processor "
            "knows shortest and squash, bicubic and bilinear."
        )
    square = {"height": size, "width": size}
    return CLIPImageProcessorPil(
        size={"shortest_edge": size} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=_RESAMPLE[interpolation],
        image_mean=list(preprocess.get("mean") or OPENAI_CLIP_MEAN),
        image_std=list(preprocess.get("std") or OPENAI_CLIP_STD),
    )


def _read_config(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))


def _renamed(weights: dict[str, torch.Tensor], config: CLIPVisionConfig) -> dict[str, torch.Tensor]:
    """Return CLIPVisionModel's names and shapes for open_clip's `visual.*` weights."""
    renamed = {
        "embeddings.class_embedding": weights["class_embedding"],
        "embeddings.patch_embedding.weight": weights["conv1.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        renamed[f"pre_layrnorm.{kind}"] = weights[f"ln_pre.{kind}"]
        renamed[f"post_layernorm.{kind}"] = weights[f"ln_post.{kind}"]
        for layer in range(config.num_hidden_layers):
            block, out = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            in_proj = weights[f"{block}.attn.in_proj_{kind}"]
            for name, part in zip("qkv", in_proj.chunk(3), strict=True):
                renamed[f"{out}.self_attn.{name}_proj.{kind}"] = part
            for name, source in _LAYER_NAMES.items():
                renamed[f"{out}.{name}.{kind}"] = weights[f"{block}.{source}.{kind}"]
    return renamed
