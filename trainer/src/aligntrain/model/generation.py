# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false
"""`generate` with images, padding on either side, and guidance by the level."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.generation.logits_process import (
    LogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.utils.generic import ModelOutput

from alignshared import InputError
from aligntrain.model.configuration import AlignGPTConfig


class AlignGPTGeneration(GenerationMixin):
    """`generate` for AlignGPT; the gate runs once, when the prompt is read."""

    if TYPE_CHECKING:
        config: AlignGPTConfig

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Like transformers' `generate`; padding may be on either side of a row.

        New tokens follow the last column, so padding on the right is first moved to the left, in
        the returned prompt too. `guidance_scale` other than 1 steers by the level: without
        `negative_prompt_ids`, the other branch is the same prompt without an alignment vector.

        Raises:
            InputError: `guidance_scale` with beams or `inputs_embeds`.
        """
        name = "input_ids" if inputs is None else "inputs"
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        mask = kwargs.get("attention_mask")
        if ids is not None and mask is not None and mask.shape == ids.shape:
            ids, kwargs["attention_mask"] = _padded_left(ids, mask)
        if ids is not None:
            kwargs[name] = ids
        return super().generate(**kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Drop levels and gate weights with the images, in steps that read from the cache.

        transformers looks for `inputs_embeds` by its name.
        """
        kwargs["inputs_embeds"] = inputs_embeds
        prepared = super().prepare_inputs_for_generation(*args, **kwargs)
        if prepared.get("pixel_values") is None:
            prepared.pop("levels", None)
            prepared.pop("gate_weights", None)
        return prepared

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Keep the gate's weights: without a cache, each step reads prompt and answer anew."""
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if outputs.gate_weights is not None:
            model_kwargs["gate_weights"] = outputs.gate_weights
        return model_kwargs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat every row `expand_size` times, each time with all of its images."""
        pixels = model_kwargs.pop("pixel_values", None)  # [I, 3, H, W]
        if pixels is not None and input_ids is not None and expand_size > 1:
            image_tokens = (input_ids == self.config.image_token_id).sum(dim=1)  # [B]
            by_row = pixels.split((image_tokens // self.config.image_tokens).tolist())
            pixels = torch.cat([images.repeat(expand_size, 1, 1, 1) for images in by_row])
        ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        if pixels is not None:
            expanded["pixel_values"] = pixels
        return ids, expanded

    def _get_logits_processor(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> LogitsProcessorList:
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        guided = generation_config.guidance_scale not in (None, 1)
        if guided and self.config.has_table and kwargs.get("negative_prompt_ids") is None:
            processors[0] = self._level_guidance(
                generation_config, kwargs["encoder_input_ids"], kwargs["model_kwargs"]
            )
        return processors

    def _level_guidance(
        self, settings: GenerationConfig, input_ids: torch.Tensor, given: dict[str, Any]
    ) -> LogitsProcessor:
        """Return the guidance away from the prompts `input_ids` [B, T] without alignment vectors.

        `given` are the model's other inputs, expanded to the returned sequences already.
        """
        if settings.num_beams != 1 or input_ids.is_floating_point():
            raise InputError(
                "guidance_scale needs input_ids and no beams; leave out inputs_embeds and beams."
            )
        ids = input_ids.repeat_interleave(settings.num_return_sequences, dim=0)
        mask = given.get("attention_mask")
        ids, mask = without_vector(ids, torch.ones_like(ids) if mask is None else mask, self.config)
        images = {"pixel_values": given.get("pixel_values")}
        model: Any = self

        def plain(input_ids: torch.Tensor, **read: Any) -> ModelOutput:
            prompt = images if read["cache"] is None else {}
            output = model(input_ids, logits_to_keep=1, **read, **prompt)
            output.logits = output.logits.float()  # as `generate` does with those of the level
            return output

        return UnbatchedClassifierFreeGuidanceLogitsProcessor(
            settings.guidance_scale, plain, ids, mask, use_cache=settings.use_cache
        )


def without_vector(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, config: AlignGPTConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [B, T] and their mask in which the alignment vector has become padding.

    The LLM reads them as those of a model of mixing none: nothing attends to padding, and positions
    count past it. It is the padding of a level, which spares the gate its work.
    """
    place = config.is_align(input_ids)
    ids = input_ids.masked_fill(place, config.align_token_id + 1)
    return _padded_left(ids, attention_mask.masked_fill(place, 0))


def _padded_left(
    input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [B, T] and their mask with all padding moved to the left, tokens in order."""
    order = (attention_mask != 0).int().argsort(dim=1, stable=True)  # [B, T]
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def count_positions(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Return the positions [B, T] of the last `length` tokens covered by the mask.

    They count each row's tokens from 0, wherever its padding is. With a cache, the mask covers
    earlier tokens too. Without a 2-dimensional mask the LLM counts for itself: None.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return None
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
