# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportAttributeAccessIssue=false
"""A model as transformers' own LLaVA, which needs no other package: one of mixing `none`, or one
whose last training phase ended with a cooldown, without its alignment vectors.
"""

from copy import deepcopy

import torch
from transformers import (
    AddedToken,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from alignshared import InputError
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.losses import body_of
from aligntrain.model.modeling import AlignGPTForConditionalGeneration
from aligntrain.model.processing import AlignGPTProcessor
from aligntrain.prompts.placeholders import IMAGE_MARK

USE = """from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
turn = {"role": "user", "content": [
    {"type": "image", "path": "cat.jpg"}, {"type": "text", "text": "What is this?"}
]}
inputs = processor.apply_chat_template(
    [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""

_STRINGS = (
    "{%- set said = namespace(turns=[]) -%}"
    "{%- for turn in messages -%}"
    "{%- if turn.content is string -%}"
    "{%- set said.turns = said.turns + [turn] -%}"
    "{%- else -%}"
    "{%- set text = namespace(marks='', words='') -%}"
    "{%- for part in turn.content -%}"
    "{%- if part.type == 'image' -%}{%- set text.marks = text.marks + '<image>\\n' -%}"
    "{%- else -%}{%- set text.words = text.words + part.text -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set said.turns = said.turns + "
    "[{'role': turn.role, 'content': text.marks + text.words}] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = said.turns -%}"
)
"""Prefix of a template for text turns: lists of content parts become text, images first."""


def check_llava(model: AlignGPTForConditionalGeneration, where: object) -> None:
    """Raise InputError unless `model` from `where` can become transformers' own LLaVA."""
    config = model.config
    if config.mixing != "none" and not config.cooldown:
        raise InputError(
            f"{where} has mixing {config.mixing}: an alignment vector stands before its images, "
            "for which transformers' LLaVA has no place; use it with aligntrain, or train a model "
            "with cooldown=0.1 or model.mixing=none."
        )
    if config.scales is not None:
        raise InputError(
            f"{where} reads images at the scales {config.scales}, which transformers' LLaVA "
            "cannot; use it with aligntrain."
        )
    if config.vision_pixel_shuffle > 1:
        raise InputError(
            f"{where} has vision_pixel_shuffle {config.vision_pixel_shuffle}, and transformers' "
            "LLaVA takes one token per patch; use it with aligntrain."
        )
    llm = model.model.language_model
    head = llm.get_output_embeddings()
    if body_of(llm) is None or head.bias is not None:
        raise InputError(
            f"{where} has the LLM {config.text_config.model_type}, whose head is more than one "
            "matrix, and transformers' LLaVA has no place for the rest; use it with aligntrain."
        )


def to_llava(
    model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return `model`, checked by `check_llava`, and its processor as transformers' own classes.

    Weights are shared. The vocabulary gains the image placeholder, so logits have one entry more
    than those of `model`; `generate` is configured never to produce it.
    """
    config = model.config
    tokenizer = deepcopy(processor.tokenizer)
    image_mark = AddedToken(IMAGE_MARK, special=True, normalized=False)
    tokenizer.add_tokens([image_mark], special_tokens=True)
    mark = int(tokenizer.convert_tokens_to_ids(IMAGE_MARK))
    strategy = (
        "default" if config.has_class_token and config.vision_feature_select == "patch" else "full"
    )
    llava_config = LlavaConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=mark,
        image_seq_length=config.image_tokens,
        projector_hidden_act=config.projector_act,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=config.vision_feature_layer,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(llava_config)
    own = model.model
    llava.model.vision_tower = own.vision_tower
    llava.model.language_model = body_of(own.language_model)
    llava.lm_head = own.language_model.get_output_embeddings()
    projector = llava.model.multi_modal_projector
    projector.linear_1, projector.act, projector.linear_2 = own.projector
    if mark >= config.text_config.vocab_size:
        size = config.text_config.vocab_size
        llava.resize_token_embeddings(mark + 1, mean_resizing=False)
        with torch.no_grad():  # drawn at random, read by nobody: every export is the same file
            for layer in (llava.get_input_embeddings(), llava.get_output_embeddings()):
                layer.get_parameter("weight")[size:] = 0
    llava.generation_config = model.generation_config
    llava.generation_config.suppress_tokens = [mark]
    return llava.eval(), _processor(processor, tokenizer, config, strategy)


def _processor(
    processor: AlignGPTProcessor,
    tokenizer: PreTrainedTokenizerBase,
    config: AlignGPTConfig,
    strategy: str,
) -> LlavaProcessor:
    settings = processor.image_processor.to_dict()
    for name in ("image_processor_type", "_processor_class", "processor_class"):
        settings.pop(name, None)
    height, width = config.image_size
    if not settings.get("crop_size"):
        settings |= {"do_center_crop": False, "crop_size": {"height": height, "width": width}}
    images = LlavaImageProcessorPil(**(settings | {"do_pad": processor.aspect == "pad"}))
    template = processor.chat_template
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=_STRINGS + str(template) if template else None,
        image_token=IMAGE_MARK,
        num_additional_image_tokens=int(config.has_class_token),
    )
