# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false
"""What `generate` needs beyond transformers' own: images that repeat with their rows, padding on
either side, and processors that meet placeholder ids.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationMixin, LogitsProcessorList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from aligntrain.model.configuration import AlignGPTConfig


class AlignGPTGeneration(GenerationMixin):
    """`generate` for AlignGPT. The gate speaks once, when the prompt is read."""

    if TYPE_CHECKING:
        config: AlignGPTConfig

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """As transformers' `generate`; padding may stand on either side of a row.

        New tokens follow the last column, so rows that are padded on the right are first turned to
        have their padding on the left; the prompt part of what comes back is turned likewise.
        """
        name = "input_ids" if inputs is None else "inputs"
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        mask = kwargs.get("attention_mask")
        if ids is not None and mask is not None and mask.shape == ids.shape:
            ids, kwargs["attention_mask"] = _padded_left(ids, mask)
        if ids is not None:
            kwargs[name] = ids
        return super().generate(**kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Later steps with a cache have neither images nor levels."""
        prepared = super().prepare_inputs_for_generation(*args, **kwargs)
        if prepared.get("pixel_values") is None:
            prepared.pop("levels", None)
            prepared.pop("gate_weights", None)
        return prepared

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Without a cache the prompt is read anew at each step: what the gate said of it stays."""
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
        pixels = model_kwargs.pop("pixel_values", None)
        if pixels is not None and input_ids is not None and expand_size > 1:
            places = (input_ids == self.config.image_token_id).sum(dim=1)
            by_row = pixels.split((places // self.config.image_tokens).tolist())
            pixels = torch.cat([row.repeat(expand_size, 1, 1, 1) for row in by_row])
        ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        if pixels is not None:
            expanded["pixel_values"] = pixels
        return ids, expanded

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        width = 1 + max(self.config.image_token_id, self.config.align_token_id)
        return LogitsProcessorList(_OverPlaceholders(one, width) for one in processors)


class _OverPlaceholders:
    """A logits processor that looks up the scores of ids it has seen, placeholders among them."""

    def __init__(self, processor: Any, width: int) -> None:
        self._processor = processor
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        vocabulary = scores.shape[-1]
        missing = self._width - vocabulary
        if missing <= 0 or isinstance(
            self._processor, UnbatchedClassifierFreeGuidanceLogitsProcessor
        ):
            return self._processor(input_ids, scores)
        impossible = scores.new_full((*scores.shape[:-1], missing), float("-inf"))
        return self._processor(input_ids, torch.cat([scores, impossible], dim=-1))[:, :vocabulary]


def _padded_left(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`ids` and `mask` [B, T] with each row's padding moved to its left, its order kept."""
    if bool(mask[:, -1].all()):
        return ids, mask
    order = (mask != 0).int().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)
