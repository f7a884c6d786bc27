# transformers types its classes for its own use.
# pyright: reportArgumentType=false
# pyright: reportIncompatibleMethodOverride=false
"""Configuration of an AlignGPT model: `config.json`, in transformers' conventions."""

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from alignshared import InputError
from aligntrain.recipes.schema import FeatureSelect, GateText, Mixing

if TYPE_CHECKING:
    import torch

OLD_MODEL = (
    "this model is of a version whose placeholders were no tokens, and this one cannot read it; "
    "make one that it can with `aligntrain convert MODEL OUTPUT`."
)

_PADDED_TO = 64
"""The rows of the embedding table become a multiple of this, which GPUs multiply faster."""

_HAS_CLASS_TOKEN = {"clip_vision_model": True, "siglip_vision_model": False}
"""Supported vision towers, and whether a class token precedes their patches."""

_VIT_L_336 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
}  # fmt: skip


class AlignGPTConfig(PreTrainedConfig):
    """Sizes and choices of an AlignGPT model.

    `mixing` combines the rows of the level table when no level is given:

        adaptive  row N + sum of gate weights times the other rows (equation 3 of the paper)
        local     the gated sum alone
        global    row N alone
        mean      row N + the mean of the other rows
        none      no alignment vector: LLaVA

    Args:
        vision_config: of a CLIP or SigLIP vision tower, or a dict with its `model_type`.
        text_config: of any causal LM, or a dict with its `model_type`.
        levels: N, rows of the level table; level k is row k - 1, the top level the last row.
        mixing: as above.
        gate_text: text read by the gate in training: `prompt`, as at inference, or `full`, with the
            answers, as in the authors' code.
        gate_hidden: width of the gate's hidden layer.
        vision_feature_layer: index of the tower's hidden state.
        vision_feature_select: its `patch` tokens, or the `full` sequence.
        vision_scales: sizes in pixels of reading an image (S2, see `vision`); None for the tower's
            own alone.
        vision_pixel_shuffle: r, for r x r neighbouring patches side by side as channels of a token
            (pixel shuffle, see `vision`); 1 for a token per patch.
        projector_act: activation of the projector.
        cooldown: share of its last training phase without alignment vectors; above 0, the model
            also works as plain LLaVA.
        image_token_id: the first placeholder, that of an image: what the tokenizer gives its next
            new token. By default the first id beyond the LLM's vocabulary. Those of the alignment
            vector and of the levels follow it, and `text_config.vocab_size` becomes large enough.
        align_token_id, llm_vocab_size, token_count: what follows from that, as saved: the second
            placeholder, the rows of the LLM's own embedding table, and the number of ids that are
            tokens. Further rows only pad the table.

    Raises:
        InputError: an unknown choice, fewer than two levels, a vision tower of another kind, or
            placeholders outside the vocabulary, as earlier versions had them.
    """

    model_type: ClassVar[str] = "aligngpt"
    sub_configs: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "vision_config": AutoConfig,
        "text_config": AutoConfig,
    }
    attribute_map: ClassVar[dict[str, str]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "image_token_index": "image_token_id"
    }

    def __init__(  # noqa: PLR0913 - a configuration lists what can be configured
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        *,
        levels: int = 8,
        mixing: Mixing = "adaptive",
        gate_text: GateText = "prompt",
        gate_hidden: int = 256,
        vision_feature_layer: int = -2,
        vision_feature_select: FeatureSelect = "patch",
        vision_scales: list[int] | None = None,
        vision_pixel_shuffle: int = 1,
        projector_act: str = "gelu",
        cooldown: float = 0.0,
        image_token_id: int | None = None,
        align_token_id: int | None = None,
        llm_vocab_size: int | None = None,
        token_count: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _sub_config(vision_config, CLIPVisionConfig(**_VIT_L_336))
        self.text_config = _sub_config(text_config, LlamaConfig())
        self.levels = levels
        self.mixing = mixing
        self.gate_text = gate_text
        self.gate_hidden = gate_hidden
        self.vision_feature_layer = vision_feature_layer
        self.vision_feature_select = vision_feature_select
        self.vision_scales = vision_scales
        self.vision_pixel_shuffle = vision_pixel_shuffle
        self.projector_act = projector_act
        self.cooldown = cooldown
        if llm_vocab_size is None and align_token_id is not None:
            raise InputError(OLD_MODEL)
        own = int(self.text_config.vocab_size) if llm_vocab_size is None else llm_vocab_size
        self.llm_vocab_size = own
        self.image_token_id = own if image_token_id is None else image_token_id
        self.align_token_id = self.image_token_id + 1
        self.token_count = token_count or max(own, self.align_token_id + levels + 1)
        if self.token_count > self.text_config.vocab_size:
            self.text_config = deepcopy(self.text_config)
            self.text_config.vocab_size = -(-self.token_count // _PADDED_TO) * _PADDED_TO
        # The LLM ties or does not tie its own embeddings; nothing above it is tied.
        tied = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self._check()
        super().__init__(**kwargs | {"tie_word_embeddings": tied})

    @property
    def vocab_size(self) -> int:
        """Rows of the LLM's embedding table, with those of placeholders."""
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.text_config.vocab_size = size

    @property
    def hidden_size(self) -> int:
        """Width of the LLM."""
        return self.text_config.hidden_size

    @hidden_size.setter
    def hidden_size(self, size: int) -> None:
        self.text_config.hidden_size = size

    @property
    def image_seq_length(self) -> int:
        """Tokens of one image, by LLaVA's name."""
        return self.image_tokens

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of an image of the tower's size."""
        vision = self.vision_config
        height, width = _pair(vision.image_size)
        patch_height, patch_width = _pair(vision.patch_size)
        return height // patch_height, width // patch_width

    @property
    def patches(self) -> int:
        """Patches of an image of the tower's size."""
        rows, columns = self.grid
        return rows * columns

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in the sequence."""
        tokens = self.patches // self.vision_pixel_shuffle**2
        return tokens + int(self.has_class_token and self.vision_feature_select == "full")

    @property
    def scales(self) -> list[int] | None:
        """`vision_scales`, or None if they are only the tower's own size."""
        own = self.vision_scales in (None, [self.vision_config.image_size])
        return None if own else self.vision_scales

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the model's images."""
        return _pair(self.scales[-1] if self.scales else self.vision_config.image_size)

    @property
    def feature_width(self) -> int:
        """Width of the projector's input features."""
        width = self.vision_config.hidden_size * (len(self.scales) if self.scales else 1)
        return width * self.vision_pixel_shuffle**2

    @property
    def tiles_per_image(self) -> int:
        """Tower-sized images read by the vision tower for one image."""
        size = self.vision_config.image_size
        return sum((scale // size) ** 2 for scale in self.scales) if self.scales else 1

    @property
    def has_class_token(self) -> bool:
        """Whether the vision tower puts a class token before its patches."""
        return _HAS_CLASS_TOKEN[self.vision_config.model_type]

    @property
    def never_written(self) -> list[tuple[int, int]]:
        """Ranges [first, end) of ids that no text has: placeholders, and rows without a token."""
        ranges = [
            (min(self.llm_vocab_size, self.image_token_id), self.align_token_id + self.levels + 1),
            (self.token_count, int(self.text_config.vocab_size)),
        ]
        return [(first, end) for first, end in ranges if first < end]

    def is_align(self, input_ids: "torch.Tensor") -> "torch.Tensor":
        """Return where `input_ids` [B, T] have an alignment placeholder, of the mix or a level."""
        last = self.align_token_id + self.levels
        return (input_ids >= self.align_token_id) & (input_ids <= last)

    @property
    def has_table(self) -> bool:
        """Whether there are alignment vectors."""
        return self.mixing != "none"

    @property
    def has_gate(self) -> bool:
        """Whether a gate weights the local rows."""
        return self.mixing in ("adaptive", "local")

    def _check(self) -> None:
        check_choice("mixing", self.mixing, Mixing)
        check_choice("gate_text", self.gate_text, GateText)
        check_choice("vision_feature_select", self.vision_feature_select, FeatureSelect)
        if self.vision_scales is not None:
            self._check_scales(self.vision_scales, self.vision_config.image_size)
        if self.levels < 2:
            raise InputError(
                f"levels is {self.levels}, but beside the global level there is at least one local "
                "one; give 2 or more."
            )
        if self.vision_config.model_type == "siglip2_vision_model":
            raise InputError(
                "vision_config is a siglip2_vision_model, the NaFlex kind of SigLIP 2, whose "
                "images differ in their number of patches; give one of a fixed size, such as "
                "google/siglip2-so400m-patch14-384."
            )
        if self.vision_config.model_type not in _HAS_CLASS_TOKEN:
            raise InputError(
                f"vision_config is a {self.vision_config.model_type}; give one of "
                f"{', '.join(_HAS_CLASS_TOKEN)}."
            )
        self._check_pixel_shuffle()
        layers = self.vision_config.num_hidden_layers
        if not -layers - 1 <= self.vision_feature_layer <= layers:
            raise InputError(
                f"vision_feature_layer is {self.vision_feature_layer}, but the vision tower has "
                f"{layers} layers; give one from {-layers - 1} to {layers}."
            )

    def _check_pixel_shuffle(self) -> None:
        side, (rows, columns) = self.vision_pixel_shuffle, self.grid
        if side < 1 or rows % side or columns % side:
            raise InputError(
                f"vision_pixel_shuffle is {side}, but the vision tower cuts an image into {rows} x "
                f"{columns} patches; give a number that divides both."
            )
        if side > 1 and self.vision_feature_select != "patch":
            raise InputError(
                f"vision_pixel_shuffle {side} goes with the patch tokens alone, as a class token "
                "has no neighbours; set vision_feature_select to patch."
            )

    def _check_scales(self, scales: Sequence[int], size: Any) -> None:
        """Raise InputError unless a tower for images of `size` can make `scales` of them."""
        if not isinstance(size, int):
            raise InputError(f"vision_scales need a tower for squares, not {size}; leave them out.")
        ascending = list(scales) == sorted(set(scales))
        if not scales or not ascending or any(scale < size or scale % size for scale in scales):
            raise InputError(
                f"vision_scales are {list(scales)}; give multiples of the vision tower's {size} "
                f"pixels in ascending order, as in [{size}, {2 * size}, {3 * size}]."
            )
        if scales[-1] > size and self.vision_feature_select != "patch":
            raise InputError(
                f"vision_scales {list(scales)} go with the patch tokens alone, as a class token "
                "has no place in the image; set vision_feature_select to patch."
            )


def _sub_config(config: PreTrainedConfig | dict[str, Any] | None, default: PreTrainedConfig) -> Any:
    if config is None:
        return default
    if isinstance(config, PreTrainedConfig):
        return config
    return AutoConfig.for_model(**{"model_type": default.model_type, **config})


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def check_choice(name: str, value: str, literal: Any) -> None:
    """Raise InputError unless `value`, called `name`, is one of the values of `literal`."""
    choices = get_args(literal)
    if value not in choices:
        raise InputError(f"{name} is {value!r}; give one of {', '.join(choices)}.")
