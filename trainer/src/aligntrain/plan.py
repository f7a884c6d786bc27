"""What a run would need, before anything is loaded: from configurations alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignshared import InputError
from aligntrain import lora, memory
from aligntrain.memory import States
from aligntrain.phases import PartSize, part_sizes
from aligntrain.recipes import Phase, Recipe, load_recipe

ZERO_STAGES = (0, 1, 2, 3)

_CHARACTERS_PER_TOKEN = 4
"""Of English in the vocabularies of today's LLMs, about."""


@dataclass(frozen=True, slots=True)
class Data:
    """What training reads: samples, and their mean length in tokens, about, where it is known."""

    samples: int
    tokens_per_sample: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of `recipe` on `gpus` GPUs would need. Sizes are in bytes.

    `states` are of one GPU, by zero stage. `activations` and `logits` are of one micro-batch of
    the longest sequences, the activations by whether they are checkpointed. `tower` is what the
    vision tower takes while it reads the images of one, one each; it is free again before the LLM
    works.
    """

    recipe: Recipe
    gpus: int
    parts: list[PartSize]
    image_tokens: int
    states: dict[int, States]
    activations: dict[bool, int]
    logits: int
    tower: int
    tiles_per_image: int
    data: Data | None

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        """Parameters that train in this phase."""
        return sum(part.parameters for part in self.parts if part.trains)

    def memory(self, zero_stage: int | None = None, checkpointing: bool | None = None) -> int:
        """Bytes on one GPU; both as the recipe has them by default."""
        stage = self.recipe.zero_stage if zero_stage is None else zero_stage
        kept = self.recipe.gradient_checkpointing if checkpointing is None else checkpointing
        return self.states[stage].total + max(self.activations[kept] + self.logits, self.tower)

    @property
    def host_memory(self) -> int:
        """Bytes of offloaded states, for all GPUs together."""
        return self.gpus * self.states[self.recipe.zero_stage].host

    @property
    def accumulation(self) -> int:
        """Micro-batches of one GPU in a step."""
        return self.recipe.batch.global_size // (self.recipe.batch.micro_size * self.gpus)

    @property
    def steps(self) -> int | None:
        """Of the optimizer; None where the recipe counts epochs and the data is not known."""
        if self.recipe.max_steps is not None or self.data is None:
            return self.recipe.max_steps
        per_epoch = self.data.samples // self.recipe.batch.global_size
        return int(self.recipe.epochs * per_epoch)

    @property
    def samples(self) -> int | None:
        """That all steps take together."""
        return None if self.steps is None else self.steps * self.recipe.batch.global_size

    @property
    def tokens(self) -> int | None:
        """Of all samples, about; at most so many where the data's lengths are not known."""
        longest = self.recipe.data.max_length
        length = longest if self.data is None else self.data.tokens_per_sample or longest
        return None if self.samples is None else self.samples * length

    @property
    def flops_per_token(self) -> int:
        """Of the LLM: 2 for each parameter forward, 2 backward, 2 more where it trains (Kaplan et
        al. 2020, arXiv 2001.08361, section 2.1).
        """
        sizes = {part.part: part for part in self.parts}
        llm, lora = sizes["llm"], sizes.get("lora")
        return (6 if llm.trains else 4) * llm.parameters + (6 * lora.parameters if lora else 0)

    @property
    def flops_per_image(self) -> int:
        """Of the vision tower, which reads each image forward alone, at all its scales."""
        tower = next(part for part in self.parts if part.part == "vision_tower")
        return 2 * tower.parameters * self.image_tokens * self.tiles_per_image


def plan(
    recipe: str | Path | Recipe,
    phase: Phase | None = None,
    *,
    gpus: int = 1,
    data: str | Path | None = None,
    rows: int | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """What a run of `recipe` needs on `gpus` GPUs; `data` is its dataset, or `rows` its size.

    Of the model only configurations are read, of the dataset only its small columns.

    Raises:
        InputError: the recipe, a model's configuration or the dataset cannot be read or do not fit,
            or the batch does not divide among the GPUs.
    """
    from aligntrain.model.head import rows_at_once

    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, phase, overrides)
    _check_gpus(recipe, gpus)
    config, model = _empty_model(recipe)
    quantized, kept_by_lora = _with_lora(model, recipe)
    parts = part_sizes(model, recipe.phase)
    parameters = sum(part.parameters for part in parts)
    trainable = sum(part.parameters for part in parts if part.trains)
    llm_trains = any(part.trains for part in parts if part.part == "llm")
    names = [name for name, _ in model.named_parameters()]
    gated = any("gate_proj." in name or "gate_up_proj." in name for name in names)
    shape = memory.Shape.of(config.text_config, gated=gated)
    tokens = recipe.batch.micro_size * recipe.data.max_length
    learned = tokens - recipe.batch.micro_size * min(config.image_tokens, recipe.data.max_length)
    at_once = rows_at_once(shape.vocabulary, recipe.batch.logits_bytes)
    return Plan(
        recipe=recipe,
        gpus=gpus,
        parts=parts,
        image_tokens=config.image_tokens,
        states={
            stage: memory.model_states(
                parameters,
                trainable,
                zero_stage=stage,
                gpus=gpus,
                precision=recipe.precision,
                offload=recipe.offload if stage == recipe.zero_stage else "none",
                quantized=quantized,
            )
            for stage in ZERO_STAGES
            if not (quantized and stage == 3)  # which cannot spread them
        },
        activations={
            kept: memory.activations(
                shape,
                tokens,
                precision=recipe.precision,
                trains=llm_trains,
                checkpointing=kept,
                lora=kept_by_lora,
            )
            for kept in (False, True)
        },
        logits=memory.logits(shape, min(learned, at_once), precision=recipe.precision),
        tower=_tower_bytes(recipe, config),
        tiles_per_image=config.tiles_per_image,
        data=_data_of(recipe, config.image_tokens, data, rows),
    )


def _check_gpus(recipe: Recipe, gpus: int) -> None:
    if gpus < 1:
        raise InputError(f"--gpus {gpus} cannot be: give 1 or more.")
    at_once = recipe.batch.micro_size * gpus
    if recipe.batch.global_size % at_once:
        raise InputError(
            f"batch.global_size {recipe.batch.global_size} is no multiple of {at_once}, which is "
            f"batch.micro_size {recipe.batch.micro_size} times {gpus} GPUs; change one of them."
        )


def _empty_model(recipe: Recipe) -> tuple[Any, Any]:
    """The configuration of the recipe's model, and the model without any memory of its own."""
    import torch

    from aligntrain.model.build import build_config
    from aligntrain.model.modeling import AlignGPTForConditionalGeneration

    names = recipe.model
    config = build_config(names.vision_tower, names.llm, **names.choices)
    with torch.device("meta"):
        return config, AlignGPTForConditionalGeneration(config)


def _with_lora(model: Any, recipe: Recipe) -> tuple[int, int]:
    """Put the recipe's LoRA into the empty `model`: how many of its weights are then in 4 bits, and
    what LoRA keeps per token of a layer.
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


def _tower_bytes(recipe: Recipe, config: Any) -> int:
    from aligntrain.model.build import DTYPES
    from aligntrain.model.scales import tower_bytes

    return tower_bytes(config, recipe.batch.micro_size, DTYPES[recipe.precision].itemsize)


def _data_of(
    recipe: Recipe, image_tokens: int, location: str | Path | None, rows: int | None
) -> Data | None:
    share = recipe.data.validation_share
    if location is None:
        return None if rows is None else Data(rows - round(rows * share))
    from aligntrain.data.index import read_index
    from aligntrain.data.shards import Shards

    talks = recipe.data.template != "plain"
    own = recipe.phase == "pretrain" and recipe.data.levels is None
    levels = recipe.model.levels if own else None
    shards = Shards(location, levels=levels, conversations=talks)
    index = read_index(shards, conversations=talks)
    train = index.train_rows(share)
    text = index.lengths[train] // _CHARACTERS_PER_TOKEN
    lengths = text + index.has_image[train] * (image_tokens + 1)
    return Data(len(train), int(lengths.clip(max=recipe.data.max_length).mean()))


def summary(plan: Plan) -> list[tuple[str, str]]:
    """The plan in words: what is told, and what there is to tell."""
    recipe, batch = plan.recipe, plan.recipe.batch
    gpus = f"{plan.gpus} GPU{'' if plan.gpus == 1 else 's'}"
    trained = ", ".join(f"{p.part} {_short(p.parameters)}" for p in plan.parts if p.trains)
    lines = [
        ("recipe", f"{recipe.name}, {recipe.phase}, {recipe.precision}, on {gpus}"),
        ("parameters", _short(plan.parameters)),
        ("trainable", f"{_short(plan.trainable)} ({trained})"),
        (
            "batch",
            f"{batch.global_size} samples: {gpus} x {batch.micro_size} x {plan.accumulation} "
            "accumulated",
        ),
    ]
    for stage, states in plan.states.items():
        mark = ", this recipe's" if stage == recipe.zero_stage else ""
        lines.append(
            (
                f"zero_stage {stage}",
                f"{_gigabytes(plan.memory(stage))} per GPU{mark}: weights "
                f"{_gigabytes(states.weights)}, gradients {_gigabytes(states.gradients)}, "
                f"optimizer {_gigabytes(states.optimizer)}",
            )
        )
    kept, other = recipe.gradient_checkpointing, not recipe.gradient_checkpointing
    lines.append(
        (
            "activations",
            f"{_gigabytes(plan.activations[kept])} of them, and {_gigabytes(plan.logits)} of "
            f"logits, at {batch.micro_size} x {recipe.data.max_length} tokens; "
            f"{_gigabytes(plan.activations[other])} {'without' if kept else 'with'} gradient "
            "checkpointing",
        )
    )
    if plan.host_memory:
        lines.append(("host memory", f"{_gigabytes(plan.host_memory)} offloaded, in all"))
    if plan.steps is None or plan.tokens is None:
        lines.append(("steps", "not known without data"))
    else:
        known = plan.data is not None and plan.data.tokens_per_sample is not None
        lines += [
            ("steps", f"{plan.steps:,}"),
            ("tokens", f"{'about' if known else 'at most'} {_short(plan.tokens)}"),
            (
                "arithmetic",
                f"{_short(plan.tokens * plan.flops_per_token)}FLOP of the LLM, "
                f"{_short(plan.flops_per_image)}FLOP of the vision tower for an image",
            ),
        ]
    return lines


def _short(number: float) -> str:
    """A number in three digits: 6.76 G."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} "


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
