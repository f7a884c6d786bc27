"""What the gate says of questions about pictures: a forward pass of the prompt, without the LLM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from PIL import Image

from aligntrain.data.dataset import Shards
from aligntrain.data.pictures import decode_picture
from aligntrain.gate.questions import Case
from aligntrain.prompts.placeholders import IMAGE_MARK
from aligntrain.prompts.unusable import Unusable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A case with its picture."""

    case: Case
    picture: Image.Image

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt, as a processor's chat template takes it."""
        text = self.case.question.replace(IMAGE_MARK, " ")  # a caption may hold the mark
        content = [{"type": "image", "image": self.picture}, {"type": "text", "text": text}]
        system = self.case.system
        before = [] if system is None else [{"role": "system", "content": system}]
        return [*before, {"role": "user", "content": content}]


def with_pictures(shards: Shards, cases: Sequence[Case], unread: list[Case]) -> Iterator[Asked]:
    """`cases` with their pictures; those whose picture cannot be decoded are added to `unread`."""
    for case in cases:
        image = shards.row(case.row).image
        try:
            yield Asked(case, decode_picture(image or b""))
        except Unusable:
            unread.append(case)


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one perhaps shorter."""
    while batch := list(islice(items, size)):
        yield batch


@torch.inference_mode()
def gate_weights(model: Any, processor: Any, asked: Sequence[Asked]) -> torch.Tensor:
    """Weights [B, N-1] float32 that the gate of `model` gives the local levels for each prompt.

    They come out of what is put before the LLM, which itself is not run. Prompts are padded on the
    right and the gate reads no padding, so that they do not depend on the batch but for rounding.
    """
    batch = processor.apply_chat_template(
        [one.messages for one in asked],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding_side": "right"},
    ).to(model.device, dtype=model.dtype)
    _, weights = model.model.embed(
        batch["input_ids"], batch["attention_mask"], batch["pixel_values"]
    )
    return weights.float().cpu()
