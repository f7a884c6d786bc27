# transformers types its classes for its own use.
# pyright: reportArgumentType=false
"""Processor: prompts and images to `input_ids` with placeholders and `pixel_values`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    BatchFeature,
    CLIPImageProcessorPil,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SiglipImageProcessorPil,
)
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image
from transformers.processing_utils import MultiModalData

from alignshared import InputError
from alignshared.errors import ArgumentError
from alignshared.images import ImageError, decode_image, to_rgb
from aligntrain.model.configuration import OLD_MODEL, AlignGPTConfig, check_choice
from aligntrain.prompts.placeholders import (
    IMAGE_MARK,
    LEVEL_MARK,
    Layout,
    check_level,
    join,
    marks_of,
    own_bos,
    take_level,
    tokenize_pieces,
    with_marks,
)
from aligntrain.prompts.templates import CHAT_TEMPLATES, TemplateName
from aligntrain.recipes.schema import Aspect

ImageProcessor = CLIPImageProcessorPil | SiglipImageProcessorPil
"""Image processor of a vision tower."""

_IMAGE_KEYS = ("image", "url", "path", "base64")
"""Keys of a part of type image that hold it."""

LARGEST_SQUARE = 4096
"""Maximum side in pixels padded without prior reduction; no tower reads that many."""


class AlignGPTProcessor(ProcessorMixin):
    """Image processor and tokenizer in one, writing the placeholders filled by the model.

    `aspect` makes an image square: `pad` with the image processor's mean colour, as in the authors'
    fine-tuning, or `crop`, the tower's own way (CLIP's cuts out the centre). `template` is `plain`,
    `vicuna_v1`, or `chat`, the tokenizer's own. `image_tokens`, `llm_vocab_size`, `levels` and
    `align` are the model's; `for_model` takes them from its configuration. The placeholders are
    added to a copy of the tokenizer, if it has none.

    Raises:
        InputError: a choice is unknown, or the files are of a version with other placeholders.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: ImageProcessor
    image_token = IMAGE_MARK

    def __init__(  # noqa: PLR0913 - ProcessorMixin saves these arguments
        self,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        image_tokens: int,
        llm_vocab_size: int | None = None,
        levels: int = 8,
        align: bool = True,
        aspect: Aspect = "pad",
        template: TemplateName = "vicuna_v1",
        chat_template: str | None = None,
    ) -> None:
        check_choice("aspect", aspect, Aspect)
        check_choice("template", template, TemplateName)
        if llm_vocab_size is None:
            raise InputError(OLD_MODEL)
        tokenizer = with_marks(tokenizer, levels)
        ids = tokenizer.convert_tokens_to_ids(marks_of(levels)[:2])
        assert isinstance(ids, list)
        self.image_token_id, self.align_token_id = ids
        self.image_tokens = image_tokens
        self.llm_vocab_size = llm_vocab_size
        self.levels = levels
        self.align = align
        self.aspect = aspect
        self.template = template
        super().__init__(
            _with_pillow(image_processor),
            tokenizer,
            chat_template=chat_template or CHAT_TEMPLATES.get(template, tokenizer.chat_template),
        )

    @classmethod
    def for_model(
        cls,
        config: AlignGPTConfig,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        *,
        aspect: Aspect = "pad",
        template: TemplateName = "vicuna_v1",
    ) -> "AlignGPTProcessor":
        """Return the processor of a model of `config`.

        Raises:
            InputError: it is not the tokenizer of the model's LLM.
        """
        end = config.llm_vocab_size
        # Gemma 3's tokenizer has a token for images beyond the vocabulary of its text models.
        foreign = sum(id_ >= end for id_, t in tokenizer.added_tokens_decoder.items() if t.special)
        processor = cls(
            _enlarged(image_processor, config),
            tokenizer,
            image_tokens=config.image_tokens,
            llm_vocab_size=end,
            levels=config.levels,
            align=config.has_table,
            aspect=aspect,
            template=template,
        )
        if len(tokenizer) - foreign > end or processor.image_token_id != config.image_token_id:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} tokens and its next one is "
                f"{processor.image_token_id}, but the LLM has {end}, and {IMAGE_MARK} is token "
                f"{config.image_token_id} of the model; give the tokenizer that belongs to the "
                "LLM, or the model's configuration that image_token_id."
            )
        return processor

    @property
    def layout(self) -> Layout:
        """Ids and sizes for writing rows of this model."""
        return Layout(
            image_token_id=self.image_token_id,
            align_token_id=self.align_token_id,
            image_tokens=self.image_tokens,
            bos_token_id=own_bos(self.tokenizer),
            align=self.align,
            llm_vocab_size=self.llm_vocab_size,
            levels=self.levels,
            token_count=len(self.tokenizer),
        )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Convert prompts with `<image>` marks, and their images, to the model's inputs.

        A prompt that begins with `<level_3>` takes the vector of level 3 instead of the mix.

        Args:
            images: one, a list, or a list of lists (PIL, arrays, paths or URLs), one per mark in
                reading order.
            text: a prompt or a list of them.
            kwargs: as transformers' processors take them, also in `text_kwargs` and
                `images_kwargs`. Of the text: `padding` (by default shorter rows are padded),
                `padding_side`, `pad_to_multiple_of`, `truncation`, `max_length`,
                `add_special_tokens`, `return_mm_token_type_ids`, and `return_tensors`, `pt` by
                default, None for lists of ids. `generate` accepts padding on either side.

        Returns:
            `input_ids` and `attention_mask` [B, T] int64 with text, `pixel_values` [I, 3, H, W]
            float32 with images.

        Raises:
            ArgumentError: marks and images differ in number, or an image would be truncated.
            InputError: a level does not exist.
        """
        merged = self._merge_kwargs(**kwargs)
        types = {"return_mm_token_type_ids": merged.get("return_mm_token_type_ids", False)}
        options = {"padding": True, "return_tensors": "pt", **types, **merged["text_kwargs"]}
        flat = _flat(images)
        data: dict[str, Any] = {}
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            marks = sum(prompt.count(IMAGE_MARK) for prompt in prompts)
            if marks != len(flat):
                raise ArgumentError(
                    f"the prompts have {marks} {IMAGE_MARK} marks, but {len(flat)} images are "
                    "given; give one for each mark."
                )
            data |= self._text_inputs(prompts, options)
        if flat:
            own = ("return_tensors", "device")
            changes = {k: v for k, v in merged["images_kwargs"].items() if k not in own}
            data["pixel_values"] = self.pixel_values(flat, **changes)
        return BatchFeature(data, tensor_type=options["return_tensors"])

    def _text_inputs(self, prompts: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask` of `prompts`, see `__call__`."""
        rows = [self._row(one, bos=options.get("add_special_tokens", True)) for one in prompts]
        length = options.get("max_length")
        if options.get("truncation") and length is not None:
            rows = [self._truncated(row, length) for row in rows]
        if options["padding"] in (False, "do_not_pad"):
            data = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        else:
            longest = max(map(len, rows))
            if options["padding"] == "max_length" and length is not None:
                longest = max(longest, length)
            multiple = options.get("pad_to_multiple_of") or 1
            longest = -(-longest // multiple) * multiple
            data = self.pad_rows(rows, options.get("padding_side"), longest)
        if options.get("return_mm_token_type_ids"):
            image = self.image_token_id
            data["mm_token_type_ids"] = [
                [int(id_ == image) for id_ in row] for row in data["input_ids"]
            ]
        return data

    def _truncated(self, row: list[int], length: int) -> list[int]:
        image = self.image_token_id
        if image in row[length:]:
            raise ArgumentError(
                f"the first {length} of {len(row)} tokens, max_length, end before or inside an "
                "image; raise max_length."
            )
        return row[:length]

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Any] | None = None, **_: Any
    ) -> MultiModalData:
        """Return the number of placeholders of images of `image_sizes`, for other servers."""
        count = len(image_sizes or ())
        tokens = [self.image_tokens] * count
        return MultiModalData(num_image_tokens=tokens, num_image_patches=[1] * count)

    @property
    def _bos(self) -> str:
        return str(self.tokenizer.bos_token or "")

    def _with_level(self, prompt: str, level: int | None) -> str:
        """Return a rendered prompt that begins with the mark of `level`, if there is one.

        Raises:
            InputError: text that is no mark would be read as one.
        """
        if level is not None:
            return LEVEL_MARK.format(level) + prompt
        if take_level(prompt, self._bos)[0] is not None:
            raise InputError(
                "the text begins with the mark of a level; leave it out and give the level as "
                "`level`."
            )
        return prompt

    def _row(self, prompt: str, *, bos: bool = True) -> list[int]:
        """Return the `input_ids` of a prompt, with the tokenizer's own BOS or without it."""
        level, text = take_level(prompt, self._bos)
        if level is not None:
            check_level(level, self.levels if self.align else 0)
            if IMAGE_MARK not in text:
                raise InputError(
                    f"the prompt begins with {LEVEL_MARK.format(level)} and has no image; a level "
                    "is that of an image."
                )
        return join(tokenize_pieces(self.tokenizer, text, add_bos=bos), self.layout, level)

    def pixel_values(self, images: Sequence[Any], **changes: Any) -> torch.Tensor:
        """Return `pixel_values` [I, 3, H, W] float32 of `images`, made square by `aspect`.

        `changes` are settings of the image processor for this call.
        """
        rgb = [_to_rgb(image) for image in images]
        if self.aspect == "pad":
            mean: list[float] = self.image_processor.image_mean
            colour = tuple(int(value * 255) for value in mean)
            rgb = [_pad_to_square(image, colour) for image in rgb]
        return self.image_processor(rgb, return_tensors="pt", **changes)["pixel_values"]

    def pad_rows(
        self,
        rows: Sequence[Sequence[int]],
        side: Literal["left", "right"] | None = None,
        length: int | None = None,
    ) -> dict[str, list[list[int]]]:
        """Return `input_ids` and `attention_mask` of `rows`, padded to the longest or `length`."""
        left = (side or self.tokenizer.padding_side) == "left"
        # Any token will do without a padding token: the mask tells padding apart.
        pad, longest = self.tokenizer.pad_token_id or 0, length or max(map(len, rows))

        def padded(row: Sequence[int], filler: int) -> list[int]:
            missing = [filler] * (longest - len(row))
            return [*missing, *row] if left else [*row, *missing]

        return {
            "input_ids": [padded(row, pad) for row in rows],
            "attention_mask": [padded([1] * len(row), 0) for row in rows],
        }

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        level: int | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or several in the model's template, or tokenize them too.

        Contents may be strings with `<image>` marks, or lists of `{"type": "text", "text": …}` and
        `{"type": "image", "image": …}` (also `url`, `path` or OpenAI's `image_url`). Images of a
        turn precede its text, each on a line of its own, as in LLaVA. `level` forces that level in
        all conversations, as `<level_3>` at the beginning of a user's string does in its own, where
        the last one counts; parts of type text are text. `kwargs` go to the template.

        Returns:
            The prompt; with `tokenize` its ids; with `return_dict` too, the output of `__call__`.
        """
        several = bool(conversation) and not isinstance(conversation[0], dict)
        conversations = list(conversation) if several else [conversation]
        images: list[Any] = []
        levels = [_level_of(turns) if level is None else level for turns in conversations]
        plain = [[_plain_turn(turn, images) for turn in turns] for turns in conversations]
        prompts = self.tokenizer.apply_chat_template(
            plain,
            chat_template=chat_template or self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **kwargs,
        )
        prompts = [*map(self._with_level, prompts, levels)]
        if not tokenize:
            return prompts if several else prompts[0]
        options = {"return_tensors": return_tensors, **(processor_kwargs or {})}
        batch = self(images=images or None, text=prompts, **options)
        return batch if return_dict else batch["input_ids"]

    @property
    def model_input_names(self) -> list[str]:
        """Keys in the output of `__call__`."""
        return ["input_ids", "attention_mask", "pixel_values"]


def _with_pillow(image_processor: ImageProcessor) -> ImageProcessor:
    """Return `image_processor` on its Pillow backend, if it has one.

    transformers prefers torchvision if installed, which resizes slightly differently. Pixels must
    not depend on that, and the authors' are Pillow's.
    """
    name = type(image_processor).__name__
    pillow = getattr(transformers, f"{name.removesuffix('Fast')}Pil", None)
    if name.endswith("Pil") or pillow is None:
        return image_processor
    return pillow.from_dict(image_processor.to_dict())


def _enlarged(image_processor: ImageProcessor, config: AlignGPTConfig) -> ImageProcessor:
    """Return `image_processor` with images as large as the largest of the scales, if any."""
    if config.scales is None:
        return image_processor
    sizes = image_processor.to_dict()
    for name in ("size", "crop_size"):
        if sizes.get(name):
            sizes[name] = dict.fromkeys(sizes[name], config.scales[-1])
    return type(image_processor)(**sizes)


def _flat(images: Any) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flat(part)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def _to_rgb(image: Any) -> Image.Image:
    if isinstance(image, str):
        # Not Path.is_file, which raises at a string as long as an image in base64.
        image = read_image(image) if os.path.isfile(image) else load_image(image)
    return to_rgb(image if isinstance(image, Image.Image) else to_pil_image(image))


def read_image(path: str | Path) -> Image.Image:
    """Return the image in the file `path` in RGB, decoded as in training, or raise InputError."""
    try:
        return decode_image(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}).") from error
    except ImageError as problem:
        raise InputError(
            f"the file {path} holds no image that can be read "
            f"({problem.reason.value}: {problem.detail})."
        ) from problem


def _pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Return `image` centred in a square of `colour`, as large as its longer side.

    A side longer than LARGEST_SQUARE is first reduced by a whole number: an image of 100,000 x 500
    pixels, some kilobytes of PNG, would make a square of 30 GB.
    """
    side = max(image.size)
    if image.size == (side, side):
        return image
    if side > LARGEST_SQUARE:
        image = image.reduce(-(-side // LARGEST_SQUARE))
        side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _level_of(turns: Sequence[dict[str, Any]]) -> int | None:
    """Return the level that the last of the user's strings to begin with one begins with."""
    texts = [turn["content"] for turn in turns if turn["role"] == "user"]
    levels = [take_level(text)[0] for text in texts if isinstance(text, str)]
    return next((level for level in reversed(levels) if level is not None), None)


def _plain_turn(turn: dict[str, Any], images: list[Any]) -> dict[str, Any]:
    """Return `turn` with its content as one string; append its images to `images`."""
    content = turn["content"]
    if isinstance(content, str):
        return {**turn, "content": take_level(content)[1]} if turn["role"] == "user" else turn
    marks, texts = "", ""
    for part in content:
        if part["type"] == "text":
            texts += part["text"]
        elif part["type"] == "image":
            marks += f"{IMAGE_MARK}\n"
            images += [part[key] for key in _IMAGE_KEYS if key in part][:1]
        elif part["type"] == "image_url":  # OpenAI's form
            marks += f"{IMAGE_MARK}\n"
            where = part["image_url"]
            images.append(where if isinstance(where, str) else where["url"])
        else:
            raise InputError(
                f"a turn has a part of type {part['type']!r}; give text and image parts."
            )
    return {**turn, "content": marks + texts}
