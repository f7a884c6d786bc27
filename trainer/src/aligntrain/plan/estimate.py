"""Parameters, memory and steps of a run, estimated from configurations alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignshared import InputError
from aligntrain.model import lora
from aligntrain.plan import memory
from aligntrain.plan.memory import States, Working
from aligntrain.recipes import Phase, Recipe, load_recipe
from aligntrain.runs.folder import required_levels
from aligntrain.train.phases import PartSize, part_sizes, trained_parts

if TYPE_CHECKING:
    from aligntrain.model import AlignGPTConfig, AlignGPTForConditionalGeneration

ZERO_STAGES = (0, 1, 2, 3)

_CHARACTERS_PER_TOKEN = 4
"""Approximate value for English in current LLMs' vocabularies."""


@dataclass(frozen=True, slots=True)
class Data:
    """Samples to train on and, if known, their approximate mean length in tokens."""

    samples: int
    tokens_per_sample: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Needs of a run of `recipe` on `gpus` GPUs; sizes are in bytes.

    `states` holds one GPU's by zero stage; `working`, by whether activations are checkpointed,
    those of one micro-batch of the longest sequences with an image each.
    """

    recipe: Recipe
    gpus: int
    parts: list[PartSize]
    image_tokens: int
    states: dict[int, States]
    working: dict[bool, Working]
    tiles_per_image: int
    tower_patches: int
    """Patches that the vision tower reads of an image, at all scales."""
    data: Data | None

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        """Parameters that train in this phase."""
        return sum(part.parameters for part in self.parts if part.trains)

    def memory(self, zero_stage: int | None = None, checkpointing: bool | None = None) -> int:
        """Return the bytes on one GPU, by default with the recipe's settings."""
        stage = self.recipe.zero_stage if zero_stage is None else zero_stage
        if checkpointing is None:
            checkpointing = self.recipe.gradient_checkpointing
        return self.working[checkpointing].peak(
            self.states[stage],
            gradients_stay=stage == 3 or self.accumulation > 1,
            checkpointing=checkpointing,
        )

    @property
    def host_memory(self) -> int:
        """Bytes of offloaded states, for all GPUs together."""
        return self.gpus * self.states[self.recipe.zero_stage].host

    @property
    def accumulation(self) -> int:
        """Micro-batches per GPU and step."""
        return self.recipe.batch.global_size // (self.recipe.batch.micro_size * self.gpus)

    @property
    def steps(self) -> int | None:
        """Optimizer steps, or None if the recipe counts epochs of unknown data."""
        if self.recipe.max_steps is not None or self.data is None:
            return self.recipe.max_steps
        per_epoch = self.data.samples // self.recipe.batch.global_size
        return int(self.recipe.epochs * per_epoch)

    @property
    def samples(self) -> int | None:
        """Samples of all steps."""
        return None if self.steps is None else self.steps * self.recipe.batch.global_size

    @property
    def tokens(self) -> int | None:
        """Approximate tokens of all samples; an upper bound if the data's lengths are not known."""
        longest = self.recipe.data.max_length
        length = longest if self.data is None else self.data.tokens_per_sample or longest
        return None if self.samples is None else self.samples * length

    @property
    def flops_per_token(self) -> int:
        """FLOPs of the LLM: 2 per parameter forward, 2 backward, 2 more if it trains (Kaplan et al.
        2020, arXiv 2001.08361, section 2.1).
        """
        sizes = {part.part: part for part in self.parts}
        llm, lora = sizes["llm"], sizes.get("lora")
        return (6 if llm.trains else 4) * llm.parameters + (6 * lora.parameters if lora else 0)

    @property
    def flops_per_image(self) -> int:
        """FLOPs of the vision tower, which runs forward only, at all scales of an image."""
        tower = next(part for part in self.parts if part.part == "vision_tower")
        return 2 * tower.parameters * self.tower_patches


def plan(
    recipe: str | Path | Recipe,
    phase: Phase | None = None,
    *,
    gpus: int = 1,
    data: str | Path | None = None,
    rows: int | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """Return the needs of a run of `recipe` on `gpus` GPUs with the dataset `data`, or with `rows`.

    Reads only configurations of the model and small columns of the dataset.

    Raises:
        InputError: the recipe, a model's configuration or the dataset cannot be read or do not fit,
            or the batch does not divide among the GPUs.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, phase, overrides)
    if gpus < 1:
        raise InputError(f"--gpus must be at least 1 (got {gpus}).")
    smallest = recipe.batch.micro_size * gpus
    if recipe.batch.global_size % smallest:
        raise InputError(
            f"batch.global_size {recipe.batch.global_size} is no multiple of {smallest}, which is "
            f"batch.micro_size {recipe.batch.micro_size} times {gpus} GPUs; change one of them."
        )
    config, model = _empty_model(recipe)
    quantized, kept_by_lora = _with_lora(model, recipe)
    parts = part_sizes(model, recipe.phase)
    sizes = partial(
        memory.model_states,
        sum(part.parameters for part in parts),
        sum(part.parameters for part in parts if part.trains),
        gpus=gpus,
        precision=recipe.precision,
        quantized=quantized,
    )
    # ZeRO-3 cannot partition 4-bit weights.
    stages = [stage for stage in ZERO_STAGES if not (quantized and stage == 3)]
    return Plan(
        recipe=recipe,
        gpus=gpus,
        parts=parts,
        image_tokens=config.image_tokens,
        states={
            stage: sizes(
                zero_stage=stage, offload=recipe.offload if stage == recipe.zero_stage else "none"
            )
            for stage in stages
        },
        working=_working(recipe, model, kept_by_lora),
        tiles_per_image=config.tiles_per_image,
        tower_patches=config.patches * config.tiles_per_image,
        data=_data_of(recipe, config.image_tokens, data, rows),
    )


def _working(
    recipe: Recipe, model: "AlignGPTForConditionalGeneration", kept_by_lora: int
) -> dict[bool, Working]:
    """Return the needs of a micro-batch, by whether activations are checkpointed."""
    from aligntrain.model.build import DTYPES
    from aligntrain.model.losses import body_of, rows_per_chunk
    from aligntrain.model.vision import tower_bytes

    config, batch, length = model.config, recipe.batch, recipe.data.max_length
    names = [name for name, _ in model.named_parameters()]
    gated = any("gate_proj." in name or "gate_up_proj." in name for name in names)
    shape = memory.Shape.of(config.text_config, gated=gated)
    activations = partial(
        memory.activations,
        precision=recipe.precision,
        trains="llm" in trained_parts(recipe.phase, lora=recipe.lora is not None),
        lora=kept_by_lora,
    )
    tokens = batch.micro_size * length
    learned = tokens - batch.micro_size * min(config.image_tokens, length)
    pieces = batch.packing and body_of(model.model.language_model) is not None
    at_once = rows_per_chunk(shape.vocabulary, batch.logits_bytes)
    scored = min(learned, at_once) if pieces else learned
    return {
        checkpointing: Working(
            kept=activations(shape, tokens, checkpointing=checkpointing),
            layer=activations(replace(shape, layers=1), tokens, checkpointing=False),
            logits=memory.logits(shape, scored, precision=recipe.precision, pieces=pieces),
            tower=tower_bytes(config, batch.micro_size, DTYPES[recipe.precision].itemsize),
        )
        for checkpointing in (False, True)
    }


def _empty_model(recipe: Recipe) -> "tuple[AlignGPTConfig, AlignGPTForConditionalGeneration]":
    """Return the configuration of the recipe's model, and the model on the meta device."""
    import torch

    from aligntrain.model.build import build_config
    from aligntrain.model.modeling import AlignGPTForConditionalGeneration

    names = recipe.model
    config = build_config(names.vision_tower, names.llm, **names.choices)
    with torch.device("meta"):
        return config, AlignGPTForConditionalGeneration(config)


def _with_lora(model: "AlignGPTForConditionalGeneration", recipe: Recipe) -> tuple[int, int]:
    """Add the recipe's LoRA to the empty `model`.

    Returns:
        The number of its weights in 4 bits, and the bytes LoRA keeps per token of a layer.
    """
    settings = recipe.lora
    if settings is None:
        return 0, 0
    import torch

    llm = model.model.language_model
    matrices = lora.linear_layers(llm)
    reads = {
        name.rpartition(".")[2]: lora.features_read(matrices[name])  # of the last layer, as of all
        for name in lora.target_names(llm, settings.targets)
    }
    with torch.device("meta"):
        lora.add_lora(model, settings)
    weights = sum(module.weight.numel() for module in matrices.values())
    kept = memory.lora_activations(
        reads, settings.rank, precision=recipe.precision, dropout=settings.dropout > 0
    )
    return weights if settings.quantize == "4bit" else 0, kept


def _data_of(
    recipe: Recipe, image_tokens: int, location: str | Path | None, rows: int | None
) -> Data | None:
    share = recipe.data.validation_share
    if location is None:
        return None if rows is None else Data(rows - round(rows * share))
    from aligntrain.data.dataset import ShardedDataset
    from aligntrain.data.index import read_index

    talks = recipe.data.template != "plain"
    # Levels recomputed by the run need not exist, and change no length.
    levels = required_levels(recipe) if recipe.data.levels is None else None
    shards = ShardedDataset(location, levels=levels, conversations=talks)
    index = read_index(shards, conversations=talks)
    train = index.train_rows(share)
    text = index.lengths[train] // _CHARACTERS_PER_TOKEN
    lengths = text + index.has_image[train] * (image_tokens + 1)
    return Data(len(train), int(lengths.clip(max=recipe.data.max_length).mean()))
