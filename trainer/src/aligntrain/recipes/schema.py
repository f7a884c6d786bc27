"""Schema of a recipe: every key with its type, default and meaning.

Any other key is an error.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from alignshared.levels import MAX_LEVELS, MIN_LEVELS

Phase = Literal["pretrain", "finetune"]
Mixing = Literal["adaptive", "local", "global", "mean", "none"]
GateText = Literal["prompt", "full"]
FeatureSelect = Literal["patch", "full"]
Aspect = Literal["pad", "crop"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["bf16", "fp16", "fp32"]
Offload = Literal["none", "optimizer", "all"]
COLUMN_PREFIX = "column:"
"""Start of a `data.levels` that names a column."""


def _relevel(value: str) -> str:
    if value in ("quantile", "random") or value.removeprefix(COLUMN_PREFIX) not in ("", value):
        return value
    raise PydanticCustomError("relevel", "Input should be 'quantile', 'random' or 'column:NAME'")


Relevel = Annotated[str, AfterValidator(_relevel)]


def fastest_precision() -> Precision:
    """Return the fastest precision of this machine's GPU, or of its processor without one.

    That is bf16 where it is computed and not emulated; else fp16 on a GPU and fp32 on a CPU.
    """
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    features = torch.cpu.get_capabilities()
    return "bf16" if features.get("amx_bf16") or features.get("avx512_bf16") else "fp32"


def _computed(value: Any) -> Any:
    return fastest_precision() if value == "auto" else value


Track = Literal["tensorboard", "wandb", "trackio"]

PHASES: tuple[Phase, ...] = get_args(Phase)

Rate = Annotated[float, Field(gt=0)]
"""Learning rate."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Strictly typed group of keys: `lr: "fast"` or `workers: 1.5` is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """Parts and form of the model."""

    vision_tower: str
    """Folder or hub name of a CLIP or SigLIP of transformers, an open_clip folder, or `demo`."""
    llm: str
    """Folder or hub name of a causal LM of transformers, `demo` or `smollm2`."""
    levels: Annotated[int, Field(ge=MIN_LEVELS, le=MAX_LEVELS)] = 8
    """N, equal to that of the pretraining data."""
    mixing: Mixing = "adaptive"
    """Combination of the alignment vectors; `none` is plain LLaVA."""
    gate_text: GateText = "prompt"
    """Text read by the gate in training: the prompt, or the `full` text with its answers."""
    vision_feature_layer: int = -2
    """Index of the vision tower's hidden state with the image features."""
    vision_feature_select: FeatureSelect = "patch"
    """The patch tokens, or all of them."""
    vision_scales: list[PositiveInt] | None = None
    """Sizes in pixels at which an image is read, multiples of the tower's own; null for its own."""
    vision_pixel_shuffle: PositiveInt = 1
    """Side of the squares of patches that become one token each: 2 makes image tokens four times
    fewer and four times wider."""
    table: Literal["learned", "random"] = "learned"
    """Level vectors of fine-tuning: those of the starting model, or new random ones (ablation)."""

    @property
    def choices(self) -> dict[str, Any]:
        """Arguments of `build_config` beside the vision tower and the LLM."""
        return self.model_dump(exclude={"vision_tower", "llm", "table"})


class DataSettings(Section):
    """Conversion of dataset rows to sequences."""

    max_length: PositiveInt = 2048
    """Tokens in a sequence, images included; longer ones are cut at a turn's end."""
    aspect: Aspect = "pad"
    """Crop the middle square of an image, or pad it to a square with the mean colour."""
    template: Literal["plain", "vicuna_v1", "chat"] = "chat"
    """`chat` is the tokenizer's own."""
    levels: Relevel | None = None
    """Levels for pretraining, `model.levels` of them, instead of the dataset's: exact quantiles of
    its scores, `random` in equal numbers (ablations), or those of another column of integers
    1..N, `column:NAME`; null for its own."""
    weight: Annotated[str, Field(min_length=1)] | None = None
    """Column of numbers that weigh each row's tokens in the loss, which is divided by the sum of
    their weights; null for no weights."""
    validation_share: Fraction = 0.0
    """Share of the images, chosen by hash of their ids, held out for validation."""
    group_by_length: bool = False
    """Whether a batch holds samples of one modality and of similar length."""
    workers: Annotated[int, Field(ge=0)] = 4
    """Processes per GPU that decode and tokenize."""
    feature_cache_mb: Annotated[float, Field(ge=0)] = 0.0
    """Maximum MB of host memory, of each process, for features of images that come again, as small
    data do in every epoch, and of each of its `workers` for their pixels; 0 for none."""
    verify: bool = True
    """Whether to compare every shard with its checksum before a run starts; reads all data."""
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Maximum share of unusable samples before the run stops."""


def _several(names: Any) -> Any:
    return (names,) if isinstance(names, str) else names


class LoraSettings(Section):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): train the product B A of two small matrices
    beside each matrix of the LLM. The defaults are LLaVA's.
    """

    rank: PositiveInt = 128
    """Rows of A and columns of B."""
    alpha: PositiveInt | None = None
    """B A is scaled by alpha / rank; null for twice the rank."""
    dropout: Fraction = 0.05
    """Dropout of A's inputs."""
    targets: Annotated[
        tuple[str, ...], BeforeValidator(_several), Field(strict=False, min_length=1)
    ] = ("all-linear",)
    """Matrices of the LLM by the ends of their names (`q_proj`, say), or `all-linear`: every one
    but the head."""
    quantize: Literal["none", "4bit"] = "none"
    """Hold the LLM's own matrices in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314): NF4
    with double quantization, on a CUDA GPU."""

    @property
    def scale(self) -> int:
        """`alpha`, or its default."""
        return 2 * self.rank if self.alpha is None else self.alpha


class OptimizerSettings(Section):
    """AdamW and its schedule."""

    lr: Rate
    """Peak learning rate of parts without their own."""
    projector_lr: Rate | None = None
    gate_lr: Rate | None = None
    llm_lr: Rate | None = None
    """Peak rate of the LLM or of its LoRA."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Applied to matrices only, not to biases, norms and the alignment table."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of all steps over which the rate rises from 0."""
    schedule: Schedule = "cosine"
    """After warm-up: a half cosine down to 0, or constant."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Maximum global gradient norm; 0 for no clipping."""


class BatchSettings(Section):
    """Samples per step."""

    global_size: PositiveInt
    """Samples per optimizer step, over all GPUs."""
    micro_size: PositiveInt
    """Samples per GPU and forward pass; gradients are accumulated over the rest."""
    packing: bool = True
    """Whether the LLM reads the samples of a micro-batch as one row without padding."""
    logits_mb: Annotated[float, Field(gt=0)] = 256.0
    """Maximum MB of float32 logits at a time; longer packed rows are computed in chunks."""

    @property
    def logits_bytes(self) -> int:
        """`logits_mb` in bytes."""
        return int(self.logits_mb * 1e6)

    @model_validator(mode="after")
    def _divides(self) -> "BatchSettings":
        if self.global_size % self.micro_size:
            raise ValueError(
                f"global_size {self.global_size} should be a multiple of micro_size "
                f"{self.micro_size}"
            )
        return self


class CheckpointSettings(Section):
    """Saving of training state."""

    every: PositiveInt = 500
    """Steps between two checkpoints."""
    keep: PositiveInt = 2
    """Number of newest checkpoints kept."""


class LogSettings(Section):
    """Metrics and validation."""

    every: PositiveInt = 1
    """Steps between two lines of metrics."""
    validate_every: PositiveInt = 500
    """Steps between two validations; there is always one at the end."""
    validate_samples: PositiveInt | None = None
    """Held-out samples per validation, spread over all of them; null for every one."""
    track: list[Track] = ["tensorboard"]
    """Trackers beside `metrics.jsonl`; wandb and trackio are extras to install."""


class Settings(Section):
    """All keys of the sections `common`, `pretrain` and `finetune`."""

    model: ModelSettings
    data: DataSettings
    optimizer: OptimizerSettings
    lora: LoraSettings | None = None
    """Fine-tune LoRA instead of the LLM's own matrices; null for the LLM itself."""
    batch: BatchSettings
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data."""
    max_steps: PositiveInt | None = None
    """Optimizer steps, overriding `epochs`."""
    cooldown: Fraction | None = None
    """Share of the steps, the last ones, that train without alignment vectors (Gao et al. 2025,
    MeCo, arXiv 2501.01956), so that the model also works as plain LLaVA; null for none."""
    precision: Annotated[Precision, BeforeValidator(_computed)] = "bf16"
    """Of the weights; `auto` is bf16 where this machine's GPU or processor computes it, else fp16
    on a GPU and fp32 on a CPU."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """Sharded over GPUs by DeepSpeed: 1 optimizer states, 2 gradients too, 3 weights too."""
    offload: Offload = "none"
    """State kept in host memory: the optimizer's, or everything possible."""
    gradient_checkpointing: bool = False
    """Whether to recompute activations in the backward pass, to save memory."""
    compile: bool = False
    """Whether to compile each layer with torch.compile; the first steps are then slow."""
    seed: int = 0
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _goes_together(self) -> "Settings":
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload {self.offload} should have zero_stage {least} or more, not "
                f"{self.zero_stage}"
            )
        if self.data.feature_cache_mb and self.zero_stage == 3:
            raise ValueError(
                "data.feature_cache_mb should be 0 with zero_stage 3, under which all ranks read "
                "images together"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile should have zero_stage 2 or less, not 3, which gathers a layer's weights "
                "from within the layer"
            )
        if self.lora is not None and self.lora.quantize == "4bit" and self.zero_stage == 3:
            raise ValueError(
                "lora.quantize 4bit should have zero_stage 2 or less, not 3, which cannot spread "
                "4-bit weights"
            )
        return self


class Recipe(Settings):
    """Complete configuration of a run of one phase, stored in the run folder."""

    name: str
    """Name of the recipe, or the stem of its file."""
    phase: Phase

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values of all keys, as in YAML."""
        return self.model_dump(mode="json")
