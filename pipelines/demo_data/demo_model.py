"""The demo CLIP: its shape, how a batch is encoded, how it is written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transformer import text_global_pool
from PIL import Image
from safetensors.torch import save_file
from torch import nn

MEAN = STD = (0.5, 0.5, 0.5)
MODEL_CFG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 60,
        "patch_size": 10,
        "width": 192,
        "layers": 6,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 128,
        "heads": 4,
        "layers": 3,
    },
}
PREPROCESS_CFG = {
    "mean": list(MEAN),
    "std": list(STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def new_model(patch_dropout: float) -> open_clip.CLIP:
    """A freshly initialised model; `patch_dropout` is the share of patches dropped in training."""
    vision_cfg: Any = {**MODEL_CFG["vision_cfg"], "patch_dropout": patch_dropout}
    return open_clip.CLIP(MODEL_CFG["embed_dim"], vision_cfg, MODEL_CFG["text_cfg"])


def encode_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Encode captions padded only to the longest of the batch, not to the context length.

    tokens: int64 [B, L] with L <= context length. Returns unit vectors, float32 [B, D]. The same
    answer as the full length gives, since the tower is causal and pools the end token.
    """
    length = int((tokens != 0).sum(dim=1).max())
    tokens = tokens[:, :length]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    pooled = text_global_pool(model.ln_final(hidden), tokens, model.text_pool_type)
    return nn.functional.normalize(pooled @ model.text_projection, dim=-1)


def on_white(drawings: np.ndarray) -> list[Image.Image]:
    """uint8 [N, H, W, 4] drawings as RGB images on white, as the demo pairs have them."""
    images = []
    for drawing in drawings:
        layer = Image.fromarray(drawing, "RGBA")
        white = Image.new("RGBA", layer.size, "white")
        images.append(Image.alpha_composite(white, layer).convert("RGB"))
    return images


def save(model: nn.Module, folder: Path) -> None:
    """Write config and float16 weights so that `local-dir:` loads them; weights by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    partial = folder / "open_clip_model.safetensors.partial"
    save_file(state, partial)
    partial.rename(folder / "open_clip_model.safetensors")


def load(folder: Path) -> tuple[nn.Module, Any, Any]:
    """Load (model in eval mode, preprocess, tokenizer) from a folder, through open_clip."""
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)
