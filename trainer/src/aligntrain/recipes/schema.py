"""What a recipe can say, and what it means.

Every key has a place here; any other is an error.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from alignshared.levels import MAX_LEVELS, MIN_LEVELS

Phase = Literal["pretrain", "finetune"]
Mixing = Literal["adaptive", "local", "global", "mean", "none"]
GateText = Literal["prompt", "full"]
FeatureSelect = Literal["patch", "full"]
Aspect = Literal["pad", "crop"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["bf16", "fp16", "fp32"]
Offload = Literal["none", "optimizer", "all"]
Relevel = Literal["quantile", "random"]
Track = Literal["tensorboard", "wandb", "trackio"]

PHASES: tuple[Phase, ...] = get_args(Phase)

Rate = Annotated[float, Field(gt=0)]
"""A learning rate."""
Share = Annotated[float, Field(ge=0, lt=1)]
"""A part of a whole."""
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of keys: typed strictly, so that `lr: "fast"` or `workers: 1.5` is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """What the model is made of."""

    vision_tower: str
    """Folder or hub name of a CLIP or SigLIP of transformers, an open_clip folder, or `demo`."""
    llm: str
    """Folder or hub name of a causal LM of transformers, or `demo`."""
    levels: Annotated[int, Field(ge=MIN_LEVELS, le=MAX_LEVELS)] = 8
    """N, as in the dataset to pretrain on."""
    mixing: Mixing = "adaptive"
    """How the alignment vectors are combined; `none` is plain LLaVA."""
    gate_text: GateText = "prompt"
    """What the gate reads in training: the prompt, or the `full` text with its answers."""
    vision_feature_layer: int = -2
    """Which hidden states of the vision tower are the image's features."""
    vision_feature_select: FeatureSelect = "patch"
    """The patch tokens, or all of them."""
    vision_scales: list[PositiveInt] | None = None
    """Sizes in pixels at which a picture is read, multiples of the tower's own; null for that."""
    table: Literal["learned", "random"] = "learned"
    """Level vectors to fine-tune with: those of the start, or new random ones (an ablation)."""

    @property
    def choices(self) -> dict[str, Any]:
        """What decides the model's form, beside the two towers: `build_config` takes it."""
        return self.model_dump(exclude={"vision_tower", "llm", "table"})


class DataSettings(Section):
    """How rows of a dataset become sequences."""

    max_length: PositiveInt = 2048
    """Tokens in a sequence, images included; longer ones are cut at a turn's end."""
    aspect: Aspect = "pad"
    """Crop the middle square of a picture, or pad it to a square with the mean colour."""
    template: Literal["plain", "vicuna_v1", "chat"] = "chat"
    """`chat` is the tokenizer's own."""
    levels: Relevel | None = None
    """Levels to pretrain on in the place of the dataset's own, `model.levels` of them: exact
    quantiles of its scores, or drawn at `random` in equal numbers (ablations); null for its own."""
    validation_share: Share = 0.0
    """Share of the pictures, chosen by hash of their ids, on which the loss is only measured."""
    group_by_length: bool = False
    """Whether a batch holds samples of one modality and of like length."""
    workers: Annotated[int, Field(ge=0)] = 4
    """Processes that decode and tokenize, for each GPU."""
    verify: bool = True
    """Whether every shard is compared with its checksum before a run starts; reads all of it."""
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run stops when more than this share of the samples cannot be used."""


def _several(names: Any) -> Any:
    return (names,) if isinstance(names, str) else names


class LoraSettings(Section):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): what is learned of the LLM's matrices is the product
    of two small ones, B A. The defaults are LLaVA's.
    """

    rank: PositiveInt = 128
    """Rows of A and columns of B."""
    alpha: PositiveInt | None = None
    """B A counts alpha / rank times; null for twice the rank."""
    dropout: Share = 0.05
    """Of what A reads."""
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
        """`alpha`, whether it is given or not."""
        return 2 * self.rank if self.alpha is None else self.alpha


class OptimizerSettings(Section):
    """AdamW and its schedule."""

    lr: Rate
    """Highest learning rate, of every part that has none of its own."""
    projector_lr: Rate | None = None
    gate_lr: Rate | None = None
    llm_lr: Rate | None = None
    """Of the LLM, or of its LoRA."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of matrices only; biases, norms and the alignment table have none."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of all steps in which the rate rises from 0."""
    schedule: Schedule = "cosine"
    """After warm-up: down to 0 along a half cosine, or as it is."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Greatest norm of all gradients together; 0 for none."""


class BatchSettings(Section):
    """Samples in one step."""

    global_size: PositiveInt
    """Of the optimizer, over all GPUs."""
    micro_size: PositiveInt
    """That one GPU works on at once; the rest is accumulated."""
    packing: bool = True
    """Whether the LLM reads the samples of a micro-batch as one row without padding."""
    logits_mb: Annotated[float, Field(gt=0)] = 256.0
    """Of logits in float32 at once, in MB; of longer packed rows they are computed in pieces."""

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
    """When the state of a run is saved."""

    every: PositiveInt = 500
    """Steps between two."""
    keep: PositiveInt = 2
    """How many of the newest stay."""


class LogSettings(Section):
    """When a run tells of itself."""

    every: PositiveInt = 1
    """Steps between two lines of metrics."""
    validate_every: PositiveInt = 500
    """Steps between two validations; there is always one at the end."""
    validate_samples: PositiveInt | None = None
    """Held-out samples that a validation takes, spread over all of them; null for every one."""
    track: list[Track] = ["tensorboard"]
    """Where the metrics go beside `metrics.jsonl`; wandb and trackio are extras to install."""


class Settings(Section):
    """All that `common`, `pretrain` and `finetune` of a recipe's file can set."""

    model: ModelSettings
    data: DataSettings
    optimizer: OptimizerSettings
    lora: LoraSettings | None = None
    """Fine-tune small matrices in the place of the LLM's own; null for the LLM itself."""
    batch: BatchSettings
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """How often each sample is seen."""
    max_steps: PositiveInt | None = None
    """Steps of the optimizer, in the place of `epochs`."""
    precision: Precision = "bf16"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """What DeepSpeed spreads over GPUs: 1 optimizer states, 2 and gradients, 3 and weights."""
    offload: Offload = "none"
    """What is kept in the host's memory: the optimizer's states, or all that can be."""
    gradient_checkpointing: bool = False
    """Whether activations are computed anew going backward, to save memory."""
    compile: bool = False
    """Whether torch.compile fuses the operations of each layer; first steps then wait for it."""
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
    """Everything that configures a run of one phase: what a run folder keeps."""

    name: str
    """What it was called by, or the stem of its file."""
    phase: Phase

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values of all keys, as YAML would hold them."""
        return self.model_dump(mode="json")
