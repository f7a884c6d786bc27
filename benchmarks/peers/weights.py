"""One set of random weights for all contenders: open_clip's file, and as transformers reads it.

Nothing is downloaded. Speed does not depend on the values, and equal scores of all contenders show
that they compute the same thing.
"""

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from peers.corpus import CACHE
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

_LAYER_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_START, _END = "<|startoftext|>", "<|endoftext|>"


def make_weights(model: str) -> Path:
    """A state_dict of the architecture `model`, written once, from a fixed seed."""
    path = CACHE / "weights" / f"{model}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network: Any = open_clip.create_model(model)
        # data-juicer divides logits by 100, the scale of trained CLIPs, to get back the cosine.
        network.logit_scale.data.fill_(math.log(100))
        torch.save(network.state_dict(), path)
    return path


def make_transformers_folder(model: str) -> Path:
    """The weights of `make_weights(model)` as a folder that transformers' CLIPModel loads."""
    folder = CACHE / "weights" / f"{model}-transformers"
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = open_clip.get_model_config(model)
    if config is None or set(config) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}:
        raise ValueError(f"{model} is not of the architecture that transformers calls CLIPModel")
    _write_json(folder / "config.json", _config(config))
    _write_tokenizer(folder, config["text_cfg"]["context_length"])
    _write_json(folder / "preprocessor_config.json", _preprocessor(config))
    tensors = torch.load(make_weights(model), weights_only=True)
    save_file(_renamed(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _config(config: dict[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    gelu = "quick_gelu" if config.get("quick_gelu") else "gelu"
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config["embed_dim"],
        "vision_config": {
            "hidden_act": gelu,
            "hidden_size": vision["width"],
            "image_size": vision["image_size"],
            "intermediate_size": vision["width"] * 4,
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "num_hidden_layers": vision["layers"],
            "patch_size": vision["patch_size"],
            "projection_dim": config["embed_dim"],
        },
        "text_config": {
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
            "hidden_act": gelu,
            "hidden_size": text["width"],
            "intermediate_size": text["width"] * 4,
            "max_position_embeddings": text["context_length"],
            "num_attention_heads": text["heads"],
            "num_hidden_layers": text["layers"],
            "projection_dim": config["embed_dim"],
            "vocab_size": text["vocab_size"],
        },
    }


def _preprocessor(config: dict[str, Any]) -> dict[str, Any]:
    size = config["vision_cfg"]["image_size"]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": open_clip.OPENAI_DATASET_MEAN,
        "image_std": open_clip.OPENAI_DATASET_STD,
        **dict.fromkeys(
            ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True
        ),
    }


def _write_tokenizer(folder: Path, length: int) -> None:
    tokenizer = SimpleTokenizer()
    vocabulary = dict(tokenizer.encoder)
    for ours, theirs in (("<start_of_text>", _START), ("<end_of_text>", _END)):
        vocabulary[theirs] = vocabulary.pop(ours)
    _write_json(folder / "vocab.json", vocabulary)
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
    }
    _write_json(folder / "tokenizer_config.json", special)


def _renamed(tensors: Tensors) -> Tensors:
    """open_clip's names and layouts turned into those of transformers' CLIPModel."""
    renamed = {
        "logit_scale": tensors["logit_scale"],
        "text_projection.weight": tensors["text_projection"].T,
        "visual_projection.weight": tensors["visual.proj"].T,
        "vision_model.embeddings.class_embedding": tensors["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": tensors["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": tensors["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": tensors["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": tensors["positional_embedding"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",  # spelt so there
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for ours, theirs in norms.items():
        renamed |= {f"{theirs}.{end}": tensors[f"{ours}.{end}"] for end in ("weight", "bias")}
    renamed |= _layers(tensors, "visual.transformer.resblocks.", "vision_model.encoder.layers.")
    renamed |= _layers(tensors, "transformer.resblocks.", "text_model.encoder.layers.")
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _layers(tensors: Tensors, ours: str, theirs: str) -> Tensors:
    layers: Tensors = {}
    for name, tensor in tensors.items():
        if not name.startswith(ours):
            continue
        number, _, rest = name.removeprefix(ours).partition(".")
        part, _, end = rest.rpartition(".")
        if part == "attn":  # in_proj_weight and in_proj_bias: queries, keys and values in one
            kind = end.removeprefix("in_proj_")
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                layers[f"{theirs}{number}.self_attn.{letter}_proj.{kind}"] = piece
        else:
            layers[f"{theirs}{number}.{_LAYER_PARTS[part]}.{end}"] = tensor
    return layers
