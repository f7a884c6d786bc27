# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportAssignmentType=false
# pyright: reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false
"""The AlignGPT model: a LLaVA whose sequence opens with an alignment vector.

Parameters, the same in checkpoints and in memory:

    model.vision_tower.*                CLIP or SigLIP, frozen in both phases
    model.projector.{0,2}.*             from image features to the LLM's embeddings
    model.alignment.table               [N, d], one vector per level
    model.alignment.gate.{0,2}.*        from similarities to weights of the local levels
    model.language_model.*              a whole causal LM of transformers, its head included
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
    initialization,
)
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from alignshared import InputError
from aligntrain.model.alignment import Alignment, mean_text, nothing, similarities
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.generation import AlignGPTGeneration
from aligntrain.model.losses import (
    body_of,
    chunked_cross_entropy,
    next_token_losses,
    packed_losses,
    packed_targets,
    token_cross_entropy,
)
from aligntrain.model.packing import Packing, mask_of, prepare_packing
from aligntrain.model.rows import read_rows
from aligntrain.model.vision import Projector, image_features
from aligntrain.prompts.placeholders import IGNORE_INDEX


@dataclass
class AlignGPTOutput(ModelOutput):
    """What a forward pass gives.

    `loss` is the mean over all labelled tokens of the batch; `sample_loss` [B] float32 (detached)
    the mean over each row's own, 0 where it has none, and `sample_tokens` [B] int64 their number.
    `gate_weights` [B, N-1] float32 are zero in rows without an image, and None where no gate spoke.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    gate_weights: torch.Tensor | None = None
    sample_loss: torch.Tensor | None = None
    sample_tokens: torch.Tensor | None = None


class AlignGPTPreTrainedModel(PreTrainedModel):
    """What transformers asks of every model of a family."""

    config_class = AlignGPTConfig
    config: AlignGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    # Whether an attention kernel can be used is for the two towers to say; each checks its own.
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform for the table (PAPER.md), torch's own for the linear layers, as in the
        authors' code; the vision tower and the LLM initialise themselves.
        """
        if isinstance(module, Alignment):
            initialization.xavier_uniform_(module.table)
        elif isinstance(module, nn.Linear):
            initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            initialization.uniform_(module.bias, -bound, bound)


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
        token_ids = input_ids.masked_fill(rows.image_mask | rows.align_mask, 0)
        embeddings = self.get_input_embeddings()(token_ids)
        if pixel_values is None or images == 0:
            if (self.training and torch.is_grad_enabled()) or _is_partitioned(self.projector):
                embeddings = embeddings + self._untouched(levels).to(embeddings.dtype)
            return embeddings, None
        features = self.get_image_features(pixel_values)
        merged = _put(embeddings, rows.image_mask, features.flatten(0, 1))
        if self.alignment is None:
            return merged, None
        text = rows.text_mask(attention_mask, labels if config.gate_text == "prompt" else None)
        seen = similarities(features, mean_text(embeddings, text), rows.row_of_image)
        vectors, weights = self.alignment(seen, levels, gate_weights)
        merged = _put(merged, rows.align_mask, vectors[rows.has_image])
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
        height, width = self.config.image_size
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


Losses = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
_NO_LOSSES: Losses = (None, None, None)


class AlignGPTForConditionalGeneration(
    AlignGPTGeneration, AlignGPTPreTrainedModel, GenerationMixin
):
    """Answers questions about images; see this module's docstring for its parameters."""

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__(config)
        self.model = AlignGPTModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.language_model.set_output_embeddings(new_embeddings)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projected image tokens [I, L, d] of `pixel_values` [I, 3, H, W]."""
        return self.model.get_image_features(pixel_values)

    def forward(  # noqa: PLR0913 - transformers' own arguments and two of ours
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        levels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        position_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        gate_weights: torch.Tensor | None = None,
        packed: bool = False,
        logits_bytes: int | None = None,
        **kwargs: Any,
    ) -> AlignGPTOutput | tuple[Any, ...]:
        """Read sequences with images, and score `labels` where they are given.

        Args:
            input_ids: [B, T] int64, placeholders where the processor writes them.
            attention_mask: [B, T], 0 at padding, which may stand left or right.
            pixel_values: [I, 3, H, W], all images of the batch in reading order.
            levels: [B] int64; k in 1..N takes row k - 1 of the table, 0 stands in rows of text.
                None mixes by `config.mixing`.
            labels: [B, T] int64, -100 where there is nothing to predict; not shifted.
            inputs_embeds: [B, T, d] in the place of `input_ids`, already merged.
            past_key_values, use_cache: transformers' cache; later steps need no images.
            position_ids: [B, T]; counted over `attention_mask` by default.
            logits_to_keep: how many of the last positions to give logits for, 0 for all; or which
                positions, [K] int64. The loss is over labels behind these.
            gate_weights: [B, N-1] in the place of what the gate would say.
            packed: for training: the LLM reads the rows one behind the other, without padding, and
                gives logits [1, K, V] of the K places behind which a label stands alone, of which
                there is one at least. `prepare_packing` comes first.
            logits_bytes: packed rows then give no logits, and their loss needs no more than so many
                bytes of them in float32 at a time. An LLM whose head is more than a linear layer
                gives them all the same.
            kwargs: for the LLM; `num_items_in_batch` divides the summed loss.

        Raises:
            InputError: placeholders and images do not match, or a level is out of range.
        """
        labels = self._without_placeholders(labels, input_ids)
        items = kwargs.pop("num_items_in_batch", None)
        as_dict = kwargs.pop("return_dict", True)
        packing, targets, places, headless = None, None, None, False
        if packed:
            if attention_mask is None or labels is None:
                raise InputError("packed rows need attention_mask and labels; give both.")
            packing = Packing.of(attention_mask)
            targets, places = packed_targets(packing, labels)
            # Whatever the number of labels: ranks over which ZeRO-3 spreads the head stay together.
            headless = logits_bytes is not None and body_of(self.model.language_model) is not None
        elif position_ids is None:
            position_ids = _positions(attention_mask, input_ids, inputs_embeds)
        output, weights = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            levels=levels,
            labels=labels,
            gate_weights=gate_weights,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep if places is None else places,
            packing=packing,
            headless=headless,
            **kwargs,
        )
        losses = _NO_LOSSES
        if packing is not None and targets is not None and places is not None:
            summed = self._token_losses(output, targets, places, logits_bytes)
            losses = packed_losses(*summed, packing, targets, places, items)
        elif labels is not None:
            kept = _places(output.logits, labels, logits_to_keep)
            losses = next_token_losses(output.logits, labels, items, kept)
        result = _output(output, weights, losses)
        return result.to_tuple() if as_dict is False else result

    def prepare_packing(self) -> str | None:
        """Let `forward` take `packed`; what stands against it with this LLM, or None."""
        return prepare_packing(self.model.language_model)

    def _token_losses(
        self, output: Any, targets: torch.Tensor, places: torch.Tensor, most_bytes: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of the `places` [K] of packed rows, and each one's [K], of whatever the
        LLM gave.
        """
        logits: torch.Tensor | None = output.get("logits")
        if logits is None:
            assert most_bytes is not None, "without it there would be logits"
            hidden = output.last_hidden_state[0, places]
            llm = self.model.language_model
            return chunked_cross_entropy(hidden, targets[places], llm, most_bytes)
        of_all = logits.shape[1] == len(targets)  # the LLM knows no logits_to_keep, or all are kept
        losses = token_cross_entropy(logits[0, places] if of_all else logits[0], targets[places])
        return losses.sum(), losses

    def _without_placeholders(
        self, labels: torch.Tensor | None, input_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """`labels` that ask for no placeholder, so that `input_ids` themselves can be given."""
        if labels is None or input_ids is None:
            return labels
        image, align = self.config.image_token_id, self.config.align_token_id
        return labels.masked_fill((input_ids == image) | (input_ids == align), IGNORE_INDEX)


def _output(llm: Any, gate_weights: torch.Tensor | None, losses: Losses) -> AlignGPTOutput:
    return AlignGPTOutput(
        loss=losses[0],
        logits=llm.get("logits"),
        past_key_values=llm.get("past_key_values"),
        hidden_states=llm.get("hidden_states"),
        attentions=llm.get("attentions"),
        gate_weights=gate_weights,
        sample_loss=losses[1],
        sample_tokens=losses[2],
    )


def _places(
    logits: torch.Tensor, labels: torch.Tensor, logits_to_keep: int | torch.Tensor
) -> torch.Tensor | None:
    """The positions that `logits` are of, None for all of `labels`."""
    length = labels.shape[1]
    if logits.shape[1] == length:
        return None
    if isinstance(logits_to_keep, int):
        return torch.arange(length - logits_to_keep, length, device=labels.device)
    return logits_to_keep


def _positions(
    attention_mask: torch.Tensor | None, *sequences: torch.Tensor | None
) -> torch.Tensor | None:
    """Positions [B, T] of whichever of `sequences` is given, the end of what the mask covers.

    They count each row's own tokens from 0, wherever its padding stands, over the cache too.
    """
    given = [sequence.shape[1] for sequence in sequences if sequence is not None]
    if not given or not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return None
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -given[0] :]
