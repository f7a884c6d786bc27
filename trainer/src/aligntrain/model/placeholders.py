"""Placeholders of a batch: where they are, and whether they fit the images, levels and model.

Letters in shapes: B rows, T positions, I images of the batch.
"""

from dataclasses import dataclass

import torch

from alignshared.errors import ArgumentError
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.prompts.placeholders import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Placeholders:
    """Placeholders in `input_ids` [B, T], and the row of each image.

    `image_mask` and `align_mask` are [B, T] bool, `has_image` [B] bool, `row_of_image` [I] int64.
    `levels` [B] int64 are those whose vectors the rows take, or None if all are mixed;
    `some_are_mixed` says whether some rows with an image are, whose level is 0.
    """

    image_mask: torch.Tensor
    align_mask: torch.Tensor
    has_image: torch.Tensor
    row_of_image: torch.Tensor
    levels: torch.Tensor | None
    some_are_mixed: bool

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        images: int,
        levels: torch.Tensor | None,
        config: AlignGPTConfig,
        align: bool = True,
    ) -> "Placeholders":
        """Find and check the placeholders in `input_ids` [B, T] of a batch with `images` images.

        `align` as for `AlignGPTForConditionalGeneration.forward`.

        Raises:
            ArgumentError: their numbers do not fit the images or the model, or a level of `levels`
                [B] is out of range.
        """
        image_mask = input_ids == config.image_token_id
        align_mask = config.is_align(input_ids)
        image_counts, align_counts = image_mask.sum(dim=1), align_mask.sum(dim=1)
        written = ((input_ids - config.align_token_id) * align_mask).sum(dim=1)  # 0: <align>
        # One transfer from the GPU for all checks.
        counts: list[tuple[int, int, int]] = torch.stack(
            [image_counts, align_counts, written], dim=1
        ).tolist()
        _check_counts(counts, images, config, align)
        if levels is not None:
            _check_levels(levels, counts, config)
        some_are_mixed = False
        if any(level for _, _, level in counts):
            some_are_mixed = levels is None and any(i and not level for i, _, level in counts)
            levels = written if levels is None else levels.where(written == 0, written)
        per_row = image_counts // config.image_tokens
        row_of_image = torch.arange(len(per_row), device=per_row.device).repeat_interleave(
            per_row, output_size=images
        )
        return cls(image_mask, align_mask, image_counts > 0, row_of_image, levels, some_are_mixed)

    def text_mask(
        self, attention_mask: torch.Tensor | None, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the text [B, T] bool that the gate reads: all of a row's text but its BOS.

        With `labels`, labelled tokens (the answers) are left out. BOS is the token before the
        alignment placeholder; rows of text have no placeholder and give no text.
        """
        after_align = self.align_mask.cumsum(dim=-1) > 0
        text = after_align & ~self.image_mask & ~self.align_mask
        # `generate` makes a 4-dimensional mask for a static cache; its padding is on the left,
        # before the alignment placeholder, and so excluded already.
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            text = text & attention_mask.bool()
        return text if labels is None else text & (labels == IGNORE_INDEX)


def _check_counts(
    counts: list[tuple[int, int, int]], images: int, config: AlignGPTConfig, align: bool
) -> None:
    """Check the image and alignment placeholders of each row, and the number of all images."""
    for row, (image_count, *_) in enumerate(counts):
        if image_count % config.image_tokens:
            raise ArgumentError(
                f"row {row} has {image_count} image tokens, which is no multiple of the "
                f"{config.image_tokens} that one image takes; make input_ids with the model's own "
                "processor, and do not truncate inside an image."
            )
    places = sum(image_count for image_count, *_ in counts) // config.image_tokens
    if places != images:
        raise ArgumentError(
            f"input_ids have places for {places} images, but pixel_values hold {images}; give as "
            "many images as there are image marks in the prompts."
        )
    for row, (image_count, align_count, _) in enumerate(counts):
        expected = int(config.has_table and align and image_count > 0)
        if align_count != expected:
            raise ArgumentError(
                f"row {row} has {align_count} alignment placeholders in the place of {expected} "
                f"(mixing {config.mixing}); make input_ids with the model's own processor."
            )


def _check_levels(
    levels: torch.Tensor, counts: list[tuple[int, int, int]], config: AlignGPTConfig
) -> None:
    if not config.has_table:
        raise ArgumentError(
            "levels are given, but a model of mixing none has no level vectors; leave them out."
        )
    values = levels.tolist()
    if levels.dim() != 1 or len(values) != len(counts):
        raise ArgumentError(
            f"levels have the shape {list(levels.shape)}; give one level for each of the "
            f"{len(counts)} rows."
        )
    for row, (level, (image_count, _, written)) in enumerate(zip(values, counts, strict=True)):
        if image_count and not written and not 1 <= level <= config.levels:
            raise ArgumentError(
                f"row {row} has level {level}; give one from 1 to {config.levels}, or a model with "
                "that many levels."
            )
