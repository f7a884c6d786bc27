# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportAttributeAccessIssue=false
"""A model as transformers' own LLaVA, which needs no other package.

What a gate mixes anew for each prompt has no place there, a fixed vector has one: each level's
vector becomes the embedding of its token, and the chat template writes the token of one level where
`<align>` stands in our rows. A model of mixing `none`, or one whose last training phase ended with
a cooldown, is exported without vectors.
"""

from copy import deepcopy
from typing import Any

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
from aligntrain.model.build import extend
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.losses import body_of
from aligntrain.model.modeling import AlignGPTForConditionalGeneration
from aligntrain.model.processing import AlignGPTProcessor
from aligntrain.prompts.placeholders import IMAGE_MARK, LEVEL_MARK, own_bos

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

MEAN = "mean"
"""The vector of equal weights: that of the top level plus the mean of the others."""

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


def vector_name(config: AlignGPTConfig, level: str | None, where: object) -> str | None:
    """Return the vector that a LLaVA of the model in `where` gets: `1` to `N`, `mean`, or None.

    `level` is one of these or `global`, the top level; None takes the vector that the mixing itself
    gives every image, or none after a cooldown.

    Raises:
        InputError: the model has no such vector, or mixes them for each prompt and `level` is None.
    """
    if level is None:
        fixed = {"global": str(config.levels), "mean": MEAN}
        if config.cooldown or not config.has_gate:
            return None if config.cooldown else fixed.get(config.mixing)
        raise InputError(
            f"{where} has mixing {config.mixing}: its gate mixes a vector for each prompt, for "
            f"which transformers' LLaVA has no place; fix one with --level 1 to {config.levels} or "
            "mean, or train a model with cooldown=0.1 or model.mixing=none."
        )
    if not config.has_table:
        raise InputError(f"{where} has mixing none and no levels; leave --level out.")
    name = str(config.levels) if level == "global" else level
    if name not in (names := vector_names(config)):
        raise InputError(f"--level {level} does not exist in {where}; give {', '.join(names)}.")
    return name


def vector_names(config: AlignGPTConfig) -> list[str]:
    """Return the names of the vectors that a LLaVA of a model of `config` can get."""
    levels = [str(level) for level in range(1, config.levels + 1)]
    return levels if config.mixing == "global" else [*levels, MEAN]


def check_llava(model: AlignGPTForConditionalGeneration, where: object) -> None:
    """Raise InputError unless `model` from `where` can become transformers' own LLaVA."""
    config = model.config
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
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    vector: str | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return `model`, checked by `check_llava`, and its processor as transformers' own classes.

    `vector` (see `vector_name`) is the one that the chat template writes if not asked for another.
    Weights are shared, and `model` is of no use afterwards. The tokens of the levels get vectors to
    look up, and one more that of `mean`; `generate` is configured never to produce placeholders.
    """
    config = model.config
    vectors = {} if vector is None else _vectors(model)
    tokenizer = deepcopy(processor.tokenizer)
    marks = [LEVEL_MARK.format(name) for name in vectors]
    tokenizer.add_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in marks], special_tokens=True
    )
    ids = [int(tokenizer.convert_tokens_to_ids(mark)) for mark in marks]
    strategy = (
        "default" if config.has_class_token and config.vision_feature_select == "patch" else "full"
    )
    llava_config = LlavaConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
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
    unwritten = {i for first, end in config.never_written for i in range(first, end)} | {*ids}
    if vectors:
        _untie(llava)
        extend(llava, max(ids) + 1)
    with torch.no_grad():
        llava.get_output_embeddings().get_parameter("weight")[sorted(unwritten)] = 0
    _write_vectors(llava.get_input_embeddings(), dict(zip(ids, vectors.values(), strict=True)))
    llava.generation_config = model.generation_config
    llava.generation_config.suppress_tokens = sorted(unwritten)
    template = processor.chat_template and _STRINGS + str(processor.chat_template)
    if template and vector is not None:
        template = _with_vector(template, vector, list(vectors), processor.tokenizer)
    return llava.eval(), _processor(processor, tokenizer, config, strategy, template)


def _vectors(model: AlignGPTForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Return the alignment vectors [d] of `model` by their names (see `vector_names`)."""
    alignment, config = model.model.alignment, model.config
    assert alignment is not None, "only a model with levels has vectors"
    table = alignment.table.detach()  # [N, d]
    vectors = {str(level): row for level, row in enumerate(table, start=1)}
    if MEAN in vector_names(config):
        # With given weights a gate reads nothing, and without a gate nothing reads similarities.
        local = config.levels - 1
        weights = torch.full((1, local), 1 / local, device=table.device)
        mixed, _ = alignment(table.new_zeros(1, config.image_tokens), gate_weights=weights)
        vectors[MEAN] = mixed[0].detach()
    return vectors


def _untie(llava: LlavaForConditionalGeneration) -> None:
    """Give the head of `llava` weights of its own, if they are those of the embeddings.

    A level's vector is for reading. As a row of the head, of the norm that it has, it could win
    over every word where `suppress_tokens` is not read.
    """
    text: Any = llava.config.text_config
    if text.tie_word_embeddings:
        own = llava.get_input_embeddings().get_parameter("weight").detach().clone()  # [V, d]
        llava.lm_head = torch.nn.Linear(own.shape[1], own.shape[0], bias=False, device="meta")
        llava.lm_head.weight = torch.nn.Parameter(own)
        llava.config.tie_word_embeddings = text.tie_word_embeddings = False


@torch.no_grad()
def _write_vectors(embeddings: torch.nn.Module, vectors: dict[int, torch.Tensor]) -> None:
    """Let `embeddings` look up each of `vectors` [d] at its id.

    Some families scale what they look up (Gemma 3 by the square root of the width), but not what
    is written behind the look-up, as our vectors are. Their rows are scaled back.
    """
    weight = embeddings.get_parameter("weight")
    for id_, vector in vectors.items():
        weight[id_] = vector
        read = embeddings(torch.tensor(id_, device=weight.device)).float()
        weight[id_] = vector.float() * (vector.float().norm() / read.norm().clamp(min=1e-30))


def _with_vector(
    template: str, vector: str, names: list[str], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Return the chat template with the token of a level in each text that has an image.

    It stands where the alignment placeholder does, right behind the BOS that the tokenizer adds,
    also if the template writes that BOS itself. The template takes a `level`, one of `names`.
    """
    behind_bos = ""
    if own_bos(tokenizer) is not None:
        bos = str(tokenizer.bos_token)
        behind_bos = (
            f"{{%- elif rendered.startswith({bos!r}) -%}}"
            f"{{{{ {bos!r} + mark + rendered[{len(bos)}:] }}}}"
        )
    known = [LEVEL_MARK.format(name) for name in names]
    # Empty expressions keep Jinja's `trim_blocks` off the template's own line feeds.
    return (
        "{%- set rendered -%}{{ '' }}" + template + "{{ '' }}{%- endset -%}"
        "{%- set asked = level if level is defined and level is not none else '" + vector + "' -%}"
        "{%- set mark = '<level_' ~ asked ~ '>' -%}"
        "{%- if mark not in " + repr(known) + " -%}"
        "{{ raise_exception('level is one of " + ", ".join(names) + "') }}"
        "{%- elif '"
        + IMAGE_MARK
        + "' not in rendered -%}{{ rendered }}"
        + behind_bos
        + "{%- else -%}{{ mark + rendered }}{%- endif -%}"
    )


def _processor(
    processor: AlignGPTProcessor,
    tokenizer: PreTrainedTokenizerBase,
    config: AlignGPTConfig,
    strategy: str,
    template: str | None,
) -> LlavaProcessor:
    settings = processor.image_processor.to_dict()
    for name in ("image_processor_type", "_processor_class", "processor_class"):
        settings.pop(name, None)
    height, width = config.image_size
    if not settings.get("crop_size"):
        settings |= {"do_center_crop": False, "crop_size": {"height": height, "width": width}}
    images = LlavaImageProcessorPil(**(settings | {"do_pad": processor.aspect == "pad"}))
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=template,
        image_token=IMAGE_MARK,
        num_additional_image_tokens=int(config.has_class_token),
    )
