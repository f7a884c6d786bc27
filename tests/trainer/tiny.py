"""Tiny random models and tokenizers, made in the process: seconds, not gigabytes."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from aligntrain.model import AlignGPTConfig, AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligntrain.model.build import extend

VOCABULARY = 260
IMAGE_SIZE = 12
IMAGE_TOKENS = 9


def vision_config(**changes: Any) -> CLIPVisionConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": IMAGE_SIZE, "patch_size": 4,
    }  # fmt: skip
    return CLIPVisionConfig(**{**sizes, **changes})


def siglip_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        image_size=IMAGE_SIZE, patch_size=4,
    )  # fmt: skip


def text_config(**changes: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 257,
        "pad_token_id": 258, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def config(**choices: Any) -> AlignGPTConfig:
    vision = choices.pop("vision_config", None) or vision_config()
    text = choices.pop("text_config", None) or text_config()
    return AlignGPTConfig(vision, text, **{"levels": 4, "gate_hidden": 8, **choices})


def model(seed: int = 0, **choices: Any) -> AlignGPTForConditionalGeneration:
    """A random model, whose LLM had its own vocabulary before it was extended by placeholders."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    config_ = config(**choices)
    size, config_.text_config.vocab_size = config_.text_config.vocab_size, config_.llm_vocab_size
    built = AlignGPTForConditionalGeneration(config_).eval()
    extend(built.model.language_model, size)
    built.config.text_config.vocab_size = size
    return built


def tokenizer(*, adds_bos: bool = True, chat_template: str | None = None) -> Any:
    """A token for every byte, then <s>, </s>, <pad> and <unk>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>"])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", chat_template=chat_template,
    )  # fmt: skip


def image_processor() -> CLIPImageProcessorPil:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)


def processor(
    config_: AlignGPTConfig, *, adds_bos: bool = True, **options: Any
) -> AlignGPTProcessor:
    return AlignGPTProcessor.for_model(
        config_, image_processor(), tokenizer(adds_bos=adds_bos), **options
    )


def picture(seed: int, width: int = 20, height: int = 14) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def saved(folder: Path, **choices: Any) -> tuple[Any, Any]:
    """A tiny model and its processor, written to `folder` as a run writes them."""
    built = model(**choices)
    with_it = processor(built.config)
    built.save_pretrained(folder)
    with_it.save_pretrained(folder)
    return built, with_it
