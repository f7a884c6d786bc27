"""CLIPs small enough for tests, with random weights: they score, and the scores mean nothing."""

import json
from pathlib import Path
from typing import Any

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 48,
        "layers": 2,
        "width": 64,
        "patch_size": 12,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}
"""open_clip's `model_cfg` of a CLIP of 3.4 million parameters, most of them token embeddings."""


def write_tiny_clip(folder: Path, **model: Any) -> Path:
    """An open_clip folder with random weights; `model` adds to its `model_cfg`."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = TINY_CONFIG | model
    torch.manual_seed(0)
    weights = open_clip.CLIP(**config).state_dict()
    folder.mkdir(parents=True)
    save_file(
        {k: v.contiguous() for k, v in weights.items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    )
    return folder
