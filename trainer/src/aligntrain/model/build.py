# transformers types its classes for its own use.
# pyright: reportPrivateUsage=false
"""Build a model from a pretrained vision tower and a pretrained language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from alignshared import InputError
from alignshared.errors import one_line
from aligntrain.model import open_clip
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.demo import demo_llm_path, demo_vision_path
from aligntrain.model.modeling import AlignGPTForConditionalGeneration
from aligntrain.model.processing import AlignGPTProcessor
from aligntrain.prompts.templates import TemplateName
from aligntrain.recipes.schema import Aspect, FeatureSelect, GateText, Mixing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_config(
    vision_tower: str,
    llm: str,
    *,
    levels: int = 8,
    mixing: Mixing = "adaptive",
    gate_text: GateText = "prompt",
    vision_feature_layer: int = -2,
    vision_feature_select: FeatureSelect = "patch",
    vision_scales: list[int] | None = None,
) -> AlignGPTConfig:
    """Return the configuration of `build_model`'s model; reads no weights.

    `vision_tower` is a transformers folder or hub name, an open_clip folder, or `demo`;
    `llm` a folder or hub name of a causal LM, or `demo`.

    Raises:
        InputError: one of them cannot be read or used.
    """
    return AlignGPTConfig(
        vision_config(vision_tower),
        text_config(llm),
        levels=levels,
        mixing=mixing,
        gate_text=gate_text,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select=vision_feature_select,
        vision_scales=vision_scales,
    )


def build_model(
    vision_tower: str,
    llm: str,
    *,
    dtype: torch.dtype | str = "fp32",
    attn_implementation: str | None = None,
    llm_options: dict[str, Any] | None = None,
    **choices: Any,
) -> AlignGPTForConditionalGeneration:
    """Return a model of the pretrained `vision_tower` and `llm` with new projector, table and gate.

    `choices` are the keyword arguments of `build_config`. `dtype` (a torch dtype, or fp32, bf16,
    fp16) is that of all weights; `attn_implementation` is transformers' name, for both towers;
    `llm_options` go to transformers for the LLM alone.

    Raises:
        InputError: the vision tower or the LLM cannot be read or used.
    """
    torch_dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    vision_folder, llm_folder = _vision_folder(vision_tower), _llm_folder(llm)
    config = build_config(vision_folder, llm_folder, **choices)
    options: dict[str, Any] = {"dtype": torch_dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    tower = load_vision_tower(vision_folder, **options)
    language_model = load_llm(llm_folder, **options, **(llm_options or {}))
    return assemble(config, tower, language_model, **options)


def load_vision_tower(name: str, **options: Any) -> PreTrainedModel:
    """Load the vision tower `name` with its weights; `options` are transformers' own."""
    folder = _vision_folder(name)
    with _readable(folder):
        if open_clip.is_open_clip(folder):
            return open_clip.load_vision_tower(folder, **options)
        return _whole(folder, AutoModel, config=vision_config(folder), **options)


def load_llm(name: str, **options: Any) -> PreTrainedModel:
    """Load the causal LM `name` with its weights; `options` are transformers' own."""
    folder = _llm_folder(name)
    with _readable(folder):
        return _whole(folder, AutoModelForCausalLM, **options)


def assemble(
    config: AlignGPTConfig,
    tower: PreTrainedModel,
    language_model: PreTrainedModel,
    **options: Any,
) -> AlignGPTForConditionalGeneration:
    """Return the model of `config` around a loaded tower and LLM, which are not copied.

    New parts are initialised on the LLM's device.
    """
    with torch.device("meta"):
        model = AlignGPTForConditionalGeneration._from_config(config, **options)
    config = model.config
    model.model.vision_tower, config.vision_config = tower, tower.config
    model.model.language_model, config.text_config = language_model, language_model.config
    for name in ("projector", "alignment"):
        part = getattr(model.model, name)
        if part is not None:
            part.to_empty(device=language_model.device)
            for module in part.modules():
                model.model._init_weights(module)
    model.generation_config = language_model.generation_config
    return model.eval()


def build_processor(
    vision_tower: str,
    llm: str,
    config: AlignGPTConfig,
    *,
    aspect: Aspect = "pad",
    template: TemplateName = "vicuna_v1",
) -> AlignGPTProcessor:
    """Return the processor of a model of `config` built from `vision_tower` and `llm`.

    Raises:
        InputError: one of them has no usable image processor or tokenizer.
    """
    vision_folder, llm_folder = _vision_folder(vision_tower), _llm_folder(llm)
    with _readable(vision_folder):
        if open_clip.is_open_clip(vision_folder):
            images: Any = open_clip.image_processor(vision_folder)
        else:
            images = AutoImageProcessor.from_pretrained(vision_folder)
    return AlignGPTProcessor.for_model(
        config, images, load_tokenizer(llm_folder), aspect=aspect, template=template
    )


def load_tokenizer(llm: str) -> Any:
    """Load the tokenizer of `llm`, setting a padding token if it has none."""
    folder = _llm_folder(llm)
    with _readable(folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        # Any token will do: attention masks are made from lengths.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _vision_folder(name: str) -> str:
    return str(demo_vision_path()) if name == "demo" else name


def _llm_folder(name: str) -> str:
    return str(demo_llm_path()) if name == "demo" else name


def vision_config(name: str) -> PreTrainedConfig:
    """Return the configuration of the vision tower `name`, also if it comes with a text tower."""
    folder = _vision_folder(name)
    if open_clip.is_open_clip(folder):
        return open_clip.vision_config(folder)
    with _readable(folder):
        config: Any = AutoConfig.from_pretrained(folder)
    return getattr(config, "vision_config", config)


def text_config(name: str) -> PreTrainedConfig:
    """Return the configuration of the causal LM `name`.

    Raises:
        InputError: it cannot be read, or has other towers beside the LLM.
    """
    folder = _llm_folder(name)
    with _readable(folder):
        config: Any = AutoConfig.from_pretrained(folder)
    if config.get_text_config() is not config:
        raise InputError(
            f"{name} is a {config.model_type}, which has a tower of its own beside its language "
            "model; give a causal LM of text alone."
        )
    return config


def _whole(folder: str, auto_class: Any, **options: Any) -> Any:
    """Load the model in `folder`; fail on a missing weight, which transformers would initialise."""
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise InputError(
            f"{folder} lacks weights, {sorted(info['missing_keys'])[0]} for one; copy it again."
        )
    return model


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn transformers' long errors about `name` into one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        kind = "folder" if Path(name).exists() else "name on the Hugging Face hub, or no network"
        detail = one_line(error, 200)
        raise InputError(
            f"{name} cannot be loaded ({kind}): {detail}; give a folder that transformers saved."
        ) from error
