# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportAssignmentType=false
# pyright: reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false
"""AlignGPT: a LLaVA whose sequence opens with an alignment vector.

    pixel_values [I, 3, H, W] -> vision tower -> projector -> image tokens [I, L, d]
    image tokens and mean text -> gate -> weights of the local levels [B, N-1]
    weights (or a level) and the level table -> alignment vector [B, d]
    [BOS] [alignment vector] text and image tokens in order [B, T, d] -> LLM -> logits [B, T, V]

Parameters, the same in checkpoints and in memory:

    model.vision_tower.*                CLIP or SigLIP, frozen in both phases
    model.projector.{0,2}.*             from image features to the LLM's embeddings
    model.alignment.table               [N, d], one vector per level
    model.alignment.gate.{0,2}.*        from similarities to weights of the local levels
    model.language_model.*              a whole causal LM of transformers, its head included

The LLM's vocabulary is extended by the placeholders (see `prompts.placeholders`). The rows of these
tokens in its tables are zeros that nothing reads or trains, and no logits give them a chance.

Letters in shapes: B rows, T positions, I images of the batch, L tokens of an image, N levels,
d hidden size of the LLM, V vocabulary; packed rows: S tokens, K of them with a label.
"""

import inspect
import math
from collections.abc import Callable
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
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import ModelOutput

from alignshared.errors import ArgumentError
from aligntrain.model.alignment import Alignment, mean_text, similarities, zero_term
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.generation import AlignGPTGeneration, count_positions
from aligntrain.model.losses import (
    Losses,
    body_of,
    chunked_cross_entropy,
    forbid,
    kept_cross_entropy,
    next_token_losses,
    packed_losses,
    packed_targets,
)
from aligntrain.model.packing import Packing, mask_of, prepare_packing
from aligntrain.model.placeholders import Placeholders
from aligntrain.model.vision import Projector, image_features
from aligntrain.prompts.placeholders import IGNORE_INDEX

_OF_THE_LLM = ("logits", "cache", "hidden_states", "attentions")
"""Fields of an output that are the LLM's own."""


@dataclass
class AlignGPTOutput(ModelOutput):
    """Output of a forward pass.

    `loss` is the (weighted) mean over all labelled tokens of the batch, `sample_loss` [B] float32
    (detached) the mean over those of each row, 0 where it has none, and `sample_tokens` [B] int64
    their number. `gate_weights` [B, N-1] float32 are zero in rows without an image, and None if no
    gate took part.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    gate_weights: torch.Tensor | None = None
    sample_loss: torch.Tensor | None = None
    sample_tokens: torch.Tensor | None = None


class AlignGPTPreTrainedModel(PreTrainedModel):
    """Class attributes and initialisation expected by transformers of a model family."""

    config_class = AlignGPTConfig
    config: AlignGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["cache"]
    # Both towers check for themselves whether they can use an attention kernel.
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the new parts; the vision tower and the LLM initialise themselves.

        Xavier-uniform for the table (AlignGPT paper), torch's default for the linear layers, as in
        the authors' code.
        """
        if isinstance(module, Alignment):
            initialization.xavier_uniform_(module.table)
        elif isinstance(module, nn.Linear):
            initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            initialization.uniform_(module.bias, -bound, bound)


ReadImages = Callable[[PreTrainedModel, torch.Tensor, AlignGPTConfig], torch.Tensor]


class AlignGPTModel(AlignGPTPreTrainedModel):
    """Vision tower, projector, alignment and LLM, with the merging of their sequences."""

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.projector = Projector(config)
        self.alignment = Alignment(config) if config.has_table else None
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.read_images: ReadImages = image_features  # the trainer may keep what it returns
        self.post_init()

    def image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return projected image tokens [I, L, d] of `pixel_values` [I, 3, H, W]."""
        features = self.read_images(self.vision_tower, pixel_values, self.config)  # [I, L, width]
        return self._project(features)

    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Return the vision tower's output, and `image_tokens` [I, L, d] as its `pooler_output`.

        `kwargs` are for the tower. With several scales its output is that of the last tiles.
        """
        outputs: list[Any] = []

        def run(images: torch.Tensor, **options: Any) -> ModelOutput:
            outputs.append(self.vision_tower(images, **(kwargs | options)))
            return outputs[-1]

        features = image_features(self.vision_tower, pixel_values, self.config, run)
        output = BaseModelOutputWithPooling(
            last_hidden_state=outputs[-1].last_hidden_state,
            pooler_output=self._project(features),
            hidden_states=outputs[-1].hidden_states,
            attentions=outputs[-1].attentions,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        return self.projector(features.to(_first_parameter(self.projector).dtype))

    def embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        levels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        gate_weights: torch.Tensor | None = None,
        align: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the LLM's input sequence [B, T, d], and the gate's weights [B, N-1] or None.

        For the arguments see `AlignGPTForConditionalGeneration.forward`; `labels` only tell the
        gate which text is the prompt.
        """
        config = self.config
        images = 0 if pixel_values is None else len(pixel_values)
        places = Placeholders.of(input_ids, images, levels, config, align)
        embeddings = self.get_input_embeddings()(input_ids)  # [B, T, d]; placeholders' overwritten
        if pixel_values is None or images == 0:
            if (self.training and torch.is_grad_enabled()) or _is_partitioned(self.projector):
                embeddings = embeddings + self._untouched(levels).to(embeddings.dtype)
            return embeddings, None
        features = self.image_tokens(pixel_values)  # [I, L, d]
        merged = _scatter(embeddings, places.image_mask, features.flatten(0, 1))
        if self.alignment is None:
            return merged, None
        # alpha = softmax(MLP(V t)), equation 2 of the paper: V image tokens, t mean text
        prompt_labels = labels if config.gate_text == "prompt" else None
        text = mean_text(embeddings, places.text_mask(attention_mask, prompt_labels))  # [B, d]
        gate_inputs = similarities(features, text, places.row_of_image)  # [B, L]
        # h_align = E_N + sum_i alpha_i E_i, equation 3, or E[level]: [B, d]
        vectors, weights = self.alignment(
            gate_inputs, places.levels, gate_weights, some_are_mixed=places.some_are_mixed
        )
        # Without `align` there is no place for them, and table and gate get gradients of zero.
        merged = _scatter(merged, places.align_mask, vectors[places.has_image])
        if weights is not None:
            weights = weights * places.has_image.unsqueeze(-1)
        return merged, weights if align else None

    def _untouched(self, levels: torch.Tensor | None) -> torch.Tensor:
        """Return a zero that depends on every parameter used only by images.

        Under ZeRO-3 every rank gathers the same modules in the same order, forward and backward, so
        a batch of text passes through them too, with a black image compared with no text.
        """
        height, width = self.config.image_size
        like = _first_parameter(self.projector)
        black = torch.zeros(1, 3, height, width, dtype=like.dtype, device=like.device)
        features = self.image_tokens(black)  # [1, L, d]
        zero = zero_term(features)
        if self.alignment is not None:
            no_text = features.new_zeros(1, features.shape[-1], dtype=torch.float32)
            row = torch.zeros(1, dtype=torch.long, device=features.device)
            gate_inputs = similarities(features, no_text, row)
            level = None if levels is None else torch.ones_like(row)
            vectors, _ = self.alignment(gate_inputs, level)
            zero = zero + zero_term(vectors)
        return zero


class AlignGPTForConditionalGeneration(
    AlignGPTGeneration, AlignGPTPreTrainedModel, GenerationMixin
):
    """AlignGPT with losses and `generate`; parameters as in this module's docstring."""

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__(config)
        self.model = AlignGPTModel(config)
        self.post_init()

    def get_decoder(self) -> nn.Module:
        """Return the LLM without its head."""
        return self.model.language_model.get_decoder()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Embedding:
        """As transformers'; tokens behind the placeholders are then the caller's, to be written."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.config.token_count = new_num_tokens or self.config.token_count
        return embeddings

    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """As `AlignGPTModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # as transformers' own models
    def forward(  # noqa: PLR0913 - transformers' own arguments and some of ours
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        levels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        position_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        gate_weights: torch.Tensor | None = None,
        align: bool = True,
        loss_weights: torch.Tensor | None = None,
        packed: bool = False,
        logits_bytes: int | None = None,
        **kwargs: Any,
    ) -> AlignGPTOutput | tuple[Any, ...]:
        """Run sequences with images through the model; compute the loss if `labels` are given.

        Args:
            input_ids: [B, T] int64 with the processor's placeholders, whose own embeddings are not
                read.
            attention_mask: [B, T], 0 at padding, which may be left or right.
            pixel_values: [I, 3, H, W], all images of the batch in reading order.
            levels: [B] int64; k in 1..N takes row k - 1 of the table, rows of text have 0. None
                mixes by `config.mixing`. In rows that have the token of a level, that one counts.
            labels: [B, T] int64, -100 where nothing is predicted; not shifted.
            inputs_embeds: [B, T, d], already merged, instead of `input_ids`.
            cache, use_cache: transformers' cache; later steps need no images.
            position_ids: [B, T]; counted over `attention_mask` by default.
            logits_to_keep: number of last positions to return logits for, 0 for all, or the
                positions themselves [K] int64. The loss covers labels after these.
            gate_weights: [B, N-1], instead of the gate's own.
            align: False for rows without alignment placeholders, read as plain LLaVA reads them.
            loss_weights: [B] float32, weights of the rows' tokens in `loss`.
            packed: training only: the LLM reads the rows as one sequence without padding and
                returns logits [1, K, V] of the K >= 1 positions that predict a label. Call
                `prepare_packing` first.
            logits_bytes: packed only: compute the loss with at most this many bytes of float32
                logits at a time, and return none. Ignored if the LLM's head is more than a linear
                layer.
            kwargs: for the LLM; `num_items_in_batch` divides the summed loss, and `shift_labels`
                [B, T] replace `labels`, each already at the position that predicts it.

        Raises:
            ArgumentError: placeholders and images do not match, or a level is out of range.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ArgumentError(
                "forward got both or neither of input_ids and inputs_embeds; give one of them."
            )
        shifted = kwargs.pop("shift_labels", None)
        if shifted is not None:  # the first position is nobody's label
            labels = nn.functional.pad(shifted[:, :-1], (1, 0), value=IGNORE_INDEX)
        labels = self._without_placeholders(labels, input_ids)
        items = kwargs.pop("num_items_in_batch", None)
        as_dict = kwargs.pop("return_dict", True)
        weights = None
        if input_ids is not None:
            inputs_embeds, weights = self.model.embed(
                input_ids, attention_mask, pixel_values, levels, labels, gate_weights, align
            )
        elif pixel_values is not None:
            raise ArgumentError(
                "forward got pixel_values with inputs_embeds, which have no places for them; give "
                "input_ids, or the embeddings that `embed` merged."
            )
        assert inputs_embeds is not None, "checked above"
        kwargs |= {"cache": cache, "use_cache": use_cache}
        losses = (None, None, None)
        if packed:
            if attention_mask is None or labels is None:
                raise ArgumentError("packed rows need attention_mask and labels; give both.")
            output, losses = self._forward_packed(
                inputs_embeds, attention_mask, labels, items, loss_weights, logits_bytes, **kwargs
            )
        else:
            read = {"attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
            output = self._forward_padded(inputs_embeds, logits_to_keep=logits_to_keep, **read)
            targets, are_shifted = (labels, False) if shifted is None else (shifted, True)
            if targets is not None:
                losses = next_token_losses(
                    *(output["logits"], targets, items, logits_to_keep, loss_weights),
                    are_shifted=are_shifted,
                )
        result = AlignGPTOutput(
            loss=losses[0],
            gate_weights=weights,
            sample_loss=losses[1],
            sample_tokens=losses[2],
            **{name: output.get(name) for name in _OF_THE_LLM},
        )
        return result.to_tuple() if as_dict is False else result

    def prepare_packing(self) -> str | None:
        """Let `forward` take `packed`; return the obstacle with this LLM, or None."""
        return prepare_packing(self.model.language_model)

    def _forward_padded(
        self,
        embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Return the LLM's output on `embeddings` [B, T, d]."""
        if position_ids is None:
            position_ids = count_positions(attention_mask, embeddings.shape[1])
        output = _run(
            self.model.language_model,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )
        forbid(output["logits"], self.config.never_written)
        return output

    def _forward_packed(
        self,
        embeddings: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        items: int | float | torch.Tensor | None,
        loss_weights: torch.Tensor | None,
        max_bytes: int | None,
        **kwargs: Any,
    ) -> tuple[ModelOutput, Losses]:
        """Return the LLM's output on all rows of `embeddings` [B, T, d] as one, and the losses."""
        llm = self.model.language_model
        packing = Packing.of(attention_mask)
        targets, positions = packed_targets(packing, labels)  # [S], [K]
        weights = None if loss_weights is None else loss_weights[packing.row[positions]]  # [K]
        # Whatever the number of labels: ranks that share the head under ZeRO-3 must agree.
        body = None if max_bytes is None else body_of(llm)
        output = _run(
            llm if body is None else body,
            inputs_embeds=packing.rows(embeddings),  # [1, S, d]
            attention_mask=mask_of(packing, llm),
            position_ids=packing.positions,  # [1, S]
            logits_to_keep=positions,
            **kwargs,
        )
        if body is None:
            forbid(output["logits"], self.config.never_written)
            total, losses = kept_cross_entropy(output["logits"], targets, positions, weights)
        else:
            hidden = output["last_hidden_state"][0, positions]  # [K, d]
            total, losses = chunked_cross_entropy(
                hidden, targets[positions], llm, max_bytes, weights, self.config.never_written
            )
        sums = total, losses, packing, targets, positions
        return output, packed_losses(*sums, items, loss_weights)

    def _without_placeholders(
        self, labels: torch.Tensor | None, input_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return `labels` without placeholders, so that `input_ids` can serve as labels."""
        if labels is None or input_ids is None:
            return labels
        image = input_ids == self.config.image_token_id
        return labels.masked_fill(image | self.config.is_align(input_ids), IGNORE_INDEX)


def _run(llm: nn.Module, **inputs: Any) -> ModelOutput:
    """Return the output of `llm`, without passing optional inputs that it does not take."""
    accepted = inspect.signature(llm.forward).parameters
    for name in ("position_ids", "logits_to_keep"):
        if name not in accepted or inputs[name] is None:
            del inputs[name]
    return llm(**inputs)


def _scatter(sequence: torch.Tensor, mask: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Write `vectors` [n, d] to the n set positions of `mask` [B, T] in `sequence` [B, T, d]."""
    return sequence.masked_scatter(mask.unsqueeze(-1), vectors.to(sequence.dtype))


def _first_parameter(module: nn.Module) -> nn.Parameter:
    """Return a parameter of `module`, for its dtype and device.

    Under ZeRO-3, `module.weight` from outside the module would gather it at once, only on the ranks
    that get here.
    """
    return next(module.parameters())


def _is_partitioned(module: nn.Module) -> bool:
    """Return whether ZeRO-3 partitions the parameters, so that ranks must gather them together."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())
