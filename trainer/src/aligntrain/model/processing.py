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

from alignshared import InputError
from alignshared.images import ImageError, decode_image, to_rgb
from aligntrain.model.configuration import AlignGPTConfig, check_choice
from aligntrain.prompts.placeholders import IMAGE_MARK, Layout, join, own_bos, tokenize_pieces
from aligntrain.prompts.templates import CHAT_TEMPLATES, TemplateName
from aligntrain.recipes.schema import Aspect

ImageProcessor = CLIPImageProcessorPil | SiglipImageProcessorPil
"""Image processor of a vision tower."""

LARGEST_SQUARE = 4096
"""Maximum side in pixels padded without prior reduction; no tower reads that many."""


class AlignGPTProcessor(ProcessorMixin):
    """Image processor and tokenizer in one, writing the placeholders filled by the model.

    `aspect` makes an image square: `pad` with the image processor's mean colour, as in the authors'
    fine-tuning, or `crop`, the tower's own way (CLIP's cuts out the centre). `template` is `plain`,
    `vicuna_v1`, or `chat`, the tokenizer's own. `image_tokens`, `image_token_id`, `align_token_id`
    and `align` are the model's; `for_model` takes them from its configuration.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: ImageProcessor

    def __init__(  # noqa: PLR0913 - ProcessorMixin saves these arguments
        self,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        image_tokens: int,
        image_token_id: int,
        align_token_id: int,
        align: bool = True,
        aspect: Aspect = "pad",
        template: TemplateName = "vicuna_v1",
        chat_template: str | None = None,
    ) -> None:
        check_choice("aspect", aspect, Aspect)
        check_choice("template", template, TemplateName)
        self.image_tokens = image_tokens
        self.image_token_id = image_token_id
        self.align_token_id = align_token_id
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
            InputError: the tokenizer has a token at the id of a placeholder.
        """
        first = min(config.image_token_id, config.align_token_id)
        # Gemma 3's tokenizer has a token for images beyond the vocabulary of its text models.
        foreign = {id_ for id_, t in tokenizer.added_tokens_decoder.items() if t.special}
        if len(tokenizer) - sum(id_ >= first for id_ in foreign) > first:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} tokens, but the model's placeholders begin at "
                f"id {first}; give the tokenizer that belongs to the language model."
            )
        return cls(
            _enlarged(image_processor, config),
            tokenizer,
            image_tokens=config.image_tokens,
            image_token_id=config.image_token_id,
            align_token_id=config.align_token_id,
            align=config.has_table,
            aspect=aspect,
            template=template,
        )

    @property
    def layout(self) -> Layout:
        """Ids and sizes for writing rows of this model."""
        return Layout(
            image_token_id=self.image_token_id,
            align_token_id=self.align_token_id,
            image_tokens=self.image_tokens,
            bos_token_id=own_bos(self.tokenizer),
            align=self.align,
        )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool = True,
        padding_side: Literal["left", "right"] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Convert prompts with `<image>` marks, and their images, to the model's inputs.

        Args:
            images: one, a list, or a list of lists (PIL, arrays, paths or URLs), one per mark in
                reading order.
            text: a prompt or a list of them.
            padding: whether to pad shorter rows.
            padding_side: the tokenizer's `padding_side` by default; `generate` accepts both.
            return_tensors: `pt`, or None for lists of ids.

        Returns:
            `input_ids` and `attention_mask` [B, T] int64 with text, `pixel_values` [I, 3, H, W]
            float32 with images.

        Raises:
            InputError: marks and images differ in number.
        """
        flat = _flat(images)
        data: dict[str, Any] = {}
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            marks = sum(prompt.count(IMAGE_MARK) for prompt in prompts)
            if marks != len(flat):
                raise InputError(
                    f"the prompts have {marks} {IMAGE_MARK} marks, but {len(flat)} images are "
                    "given; give one for each mark."
                )
            pieces = [tokenize_pieces(self.tokenizer, prompt) for prompt in prompts]
            rows = [join(piece, self.layout) for piece in pieces]
            if padding:
                data |= self.pad_rows(rows, padding_side)
            else:
                data |= {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if flat:
            data["pixel_values"] = self.pixel_values(flat)
        return BatchFeature(data, tensor_type=return_tensors)

    def pixel_values(self, images: Sequence[Any]) -> torch.Tensor:
        """Return `pixel_values` [I, 3, H, W] float32 of `images`, made square by `aspect`."""
        rgb = [_to_rgb(image) for image in images]
        if self.aspect == "pad":
            mean: list[float] = self.image_processor.image_mean
            colour = tuple(int(value * 255) for value in mean)
            rgb = [_pad_to_square(image, colour) for image in rgb]
        return self.image_processor(rgb, return_tensors="pt")["pixel_values"]

    def pad_rows(
        self, rows: Sequence[Sequence[int]], side: Literal["left", "right"] | None = None
    ) -> dict[str, list[list[int]]]:
        """Return `input_ids` and `attention_mask` of `rows`, padded to the longest."""
        left = (side or self.tokenizer.padding_side) == "left"
        # Any token will do without a padding token: the mask tells padding apart.
        pad, longest = self.tokenizer.pad_token_id or 0, max(map(len, rows))

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
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or several in the model's template, or tokenize them too.

        Contents may be strings with `<image>` marks, or lists of `{"type": "text", "text": …}` and
        `{"type": "image", "image": …}` (also `url` or `path`). Images of a turn precede its text,
        each on a line of its own, as in LLaVA. `kwargs` go to the template.

        Returns:
            The prompt; with `tokenize` its ids; with `return_dict` too, the output of `__call__`.
        """
        several = bool(conversation) and not isinstance(conversation[0], dict)
        conversations = list(conversation) if several else [conversation]
        images: list[Any] = []
        plain = [[_plain_turn(turn, images) for turn in turns] for turns in conversations]
        prompts = self.tokenizer.apply_chat_template(
            plain,
            chat_template=chat_template or self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **kwargs,
        )
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


def _plain_turn(turn: dict[str, Any], images: list[Any]) -> dict[str, Any]:
    """Return `turn` with its content as one string; append its images to `images`."""
    content = turn["content"]
    if isinstance(content, str):
        return turn
    marks, texts = "", ""
    for part in content:
        if part["type"] == "text":
            texts += part["text"]
        elif part["type"] == "image":
            marks += f"{IMAGE_MARK}\n"
            sources = [part[key] for key in ("image", "url", "path") if key in part]
            images += sources[:1]
        else:
            raise InputError(
                f"a turn has a part of type {part['type']!r}; give text and image parts."
            )
    return {**turn, "content": marks + texts}
