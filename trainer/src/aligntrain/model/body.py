# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportAssignmentType=false
# pyright: reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false
"""The parts of the model, and how images and alignment vectors come into the LLM's sequence."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from alignshared import InputError
from aligntrain.model.alignment import Alignment, mean_text, nothing, similarities
from aligntrain.model.base import AlignGPTPreTrainedModel
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.head import body_of
from aligntrain.model.packing import Packing, mask_of
from aligntrain.model.projector import Projector
from aligntrain.model.rows import read_rows
from aligntrain.model.vision import image_features


class AlignGPTModel(AlignGPTPreTrainedModel):
    """The parts, and how images and alignment vectors come into the LLM's sequence."""

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.projector = Projector(config)
        self.alignment = Alignment(config) if config.has_table else None
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projected image tokens [I, L, d] of `pixel_values` [I, 3, H, W]."""
        features = image_features(self.vision_tower, pixel_values, self.config)
        return self.projector(features.to(_first(self.projector).dtype))

    def embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        levels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        gate_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The sequence that the LLM reads, [B, T, d], and the gate's weights [B, N-1] or None.

        See `AlignGPTForConditionalGeneration.forward` for the arguments.
        """
        config = self.config
        images = 0 if pixel_values is None else len(pixel_values)
        rows = read_rows(input_ids, images, levels, config)
        token_ids = input_ids.masked_fill(rows.image_places | rows.align_places, 0)
        embeddings = self.get_input_embeddings()(token_ids)
        if pixel_values is None or images == 0:
            if (self.training and torch.is_grad_enabled()) or _is_partitioned(self.projector):
                embeddings = embeddings + self._untouched(levels).to(embeddings.dtype)
            return embeddings, None
        features = self.get_image_features(pixel_values)
        merged = _put(embeddings, rows.image_places, features.flatten(0, 1))
        if self.alignment is None:
            return merged, None
        text = rows.text_places(attention_mask, labels if config.gate_text == "prompt" else None)
        seen = similarities(features, mean_text(embeddings, text), rows.row_of_image)
        vectors, weights = self.alignment(seen, levels, gate_weights)
        merged = _put(merged, rows.align_places, vectors[rows.has_image])
        if weights is not None:
            weights = weights * rows.has_image.unsqueeze(-1)
        return merged, weights

    def forward(  # noqa: PLR0913 - transformers' own arguments and some of ours
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        levels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        gate_weights: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        packing: Packing | None = None,
        headless: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, torch.Tensor | None]:
        """The LLM's output on the merged sequence, and the gate's weights or None.

        `labels` only tell the gate which text is the prompt; with `packing` the LLM reads all rows
        as one; `headless` leaves out its head; `kwargs` go to the LLM.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError(
                "forward got both or neither of input_ids and inputs_embeds; give one of them."
            )
        weights = None
        if input_ids is not None:
            inputs_embeds, weights = self.embed(
                input_ids, attention_mask, pixel_values, levels, labels, gate_weights
            )
        elif pixel_values is not None:
            raise InputError(
                "forward got pixel_values with inputs_embeds, which have no places for them; give "
                "input_ids, or the embeddings that `embed` merged."
            )
        if packing is not None:
            inputs_embeds = packing.rows(inputs_embeds)
            attention_mask = mask_of(packing, self.language_model)
            kwargs["position_ids"] = packing.positions
        reader = body_of(self.language_model) if headless else self.language_model
        assert reader is not None, "the caller has asked `body_of`"
        accepted = inspect.signature(reader.forward).parameters
        known = {name: kwargs.pop(name, None) for name in ("position_ids", "logits_to_keep")}
        kwargs |= {
            name: value for name, value in known.items() if name in accepted and value is not None
        }
        output = reader(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        return output, weights

    def _untouched(self, levels: torch.Tensor | None) -> torch.Tensor:
        """Zero that depends on every parameter that only images reach.

        Under ZeRO-3 every rank gathers the same modules in the same order, forth and back, so a
        batch of text passes through them too, with a black image that is compared with no text.
        """
        height, width = self.config.picture_size
        like = _first(self.projector)
        black = torch.zeros(1, 3, height, width, dtype=like.dtype, device=like.device)
        features = self.get_image_features(black)
        zero = nothing(features)
        if self.alignment is not None:
            no_text = features.new_zeros(1, features.shape[-1], dtype=torch.float32)
            row = torch.zeros(1, dtype=torch.long, device=features.device)
            seen = similarities(features, no_text, row)
            one = None if levels is None else torch.ones(1, dtype=torch.long, device=seen.device)
            vectors, _ = self.alignment(seen, one)
            zero = zero + nothing(vectors)
        return zero


def _put(sequence: torch.Tensor, places: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """`sequence` [B, T, d] with `vectors` [n, d] at the n `places` [B, T], in reading order."""
    return sequence.masked_scatter(places.unsqueeze(-1), vectors.to(sequence.dtype))


def _first(module: nn.Module) -> nn.Parameter:
    """A parameter of `module`, to see its type and device.

    Under ZeRO-3, `module.weight` from outside the module would gather it at once, on the ranks that
    come by here and no others.
    """
    return next(module.parameters())


def _is_partitioned(module: nn.Module) -> bool:
    """Whether DeepSpeed ZeRO-3 holds the parameters, so that ranks must gather them together."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())
