"""What stands where in a batch of `input_ids`, checked."""

from dataclasses import dataclass

import torch

from alignshared import InputError
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.prompts.placeholders import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Rows:
    """The places in `input_ids` [B, T], and which row each image of the batch belongs to.

    `image_mask` and `align_mask` are [B, T] bool, `has_image` [B] bool, `row_of_image` [I]
    int64.
    """

    image_mask: torch.Tensor
    align_mask: torch.Tensor
    has_image: torch.Tensor
    row_of_image: torch.Tensor

    def text_mask(
        self, attention_mask: torch.Tensor | None, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Where the gate's text stands, [B, T] bool: all of a row's text but its BOS, and where
        `labels` are given only what they do not ask for.

        BOS is what stands before the alignment place; text-only rows, which have none, give no
        text, for nothing is mixed for them.
        """
        after_align = self.align_mask.cumsum(dim=-1) > 0
        text = after_align & ~self.image_mask & ~self.align_mask
        # A mask that `generate` made for a static cache has four dimensions; its padding is on the
        # left, before the alignment place.
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            text = text & attention_mask.bool()
        return text if labels is None else text & (labels == IGNORE_INDEX)


def read_rows(
    input_ids: torch.Tensor, images: int, levels: torch.Tensor | None, config: AlignGPTConfig
) -> Rows:
    """Find the placeholders in `input_ids` [B, T] of a batch with `images` images.

    Raises:
        InputError: their numbers do not fit the images or the model, or a level of `levels` [B] is
            out of range.
    """
    image_mask = input_ids == config.image_token_id
    align_mask = input_ids == config.align_token_id
    image_counts, align_counts = image_mask.sum(dim=1), align_mask.sum(dim=1)
    rows: list[tuple[int, int]] = torch.stack([image_counts, align_counts], dim=1).tolist()
    _check_images([count for count, _ in rows], images, config.image_tokens)
    _check_align(rows, config)
    _check_levels(levels, rows, config)
    per_row = image_counts // config.image_tokens
    row_of_image = torch.arange(len(per_row), device=per_row.device).repeat_interleave(
        per_row, output_size=images
    )
    return Rows(image_mask, align_mask, image_counts > 0, row_of_image)


def _check_images(counts: list[int], images: int, image_tokens: int) -> None:
    for row, count in enumerate(counts):
        if count % image_tokens:
            raise InputError(
                f"row {row} has {count} image tokens, which is no multiple of the {image_tokens} "
                "that one image takes; make input_ids with the model's own processor, and do not "
                "truncate inside an image."
            )
    places = sum(counts) // image_tokens
    if places != images:
        raise InputError(
            f"input_ids have places for {places} images, but pixel_values hold {images}; give as "
            "many images as there are image marks in the prompts."
        )


def _check_align(rows: list[tuple[int, int]], config: AlignGPTConfig) -> None:
    for row, (image_count, align_count) in enumerate(rows):
        expected = int(config.has_table and image_count > 0)
        if align_count != expected:
            raise InputError(
                f"row {row} has {align_count} alignment placeholders in the place of {expected} "
                f"(mixing {config.mixing}); make input_ids with the model's own processor."
            )


def _check_levels(
    levels: torch.Tensor | None, rows: list[tuple[int, int]], config: AlignGPTConfig
) -> None:
    if levels is None:
        return
    if not config.has_table:
        raise InputError(
            "levels are given, but a model of mixing none has no level vectors; leave them out."
        )
    values = levels.tolist()
    if levels.dim() != 1 or len(values) != len(rows):
        raise InputError(
            f"levels have the shape {list(levels.shape)}; give one level for each of the "
            f"{len(rows)} rows."
        )
    for row, (level, (image_count, _)) in enumerate(zip(values, rows, strict=True)):
        if image_count and not 1 <= level <= config.levels:
            raise InputError(
                f"row {row} has level {level}; give one from 1 to {config.levels}, or a model with "
                "that many levels."
            )
