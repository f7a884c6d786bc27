"""Trainable parts by phase: the stage rules of the paper, in one table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignshared import AlignError
from aligntrain.recipes.schema import OptimizerSettings, Phase

if TYPE_CHECKING:
    from torch import nn

Part = Literal["vision_tower", "projector", "table", "gate", "llm", "lora"]

PARTS: tuple[Part, ...] = get_args(Part)

# PAPER.md, Stages (arXiv 2405.14129, section 3.2): the LLM learns to read images and levels before
# it changes itself; then the table stays what it was, and the gate learns to mix it.
# With LoRA the LLM's own weights stay, and the small matrices beside them learn in their place.
_TABLE: dict[tuple[Phase, bool], tuple[bool, ...]] = {
    # LoRA   PARTS:       vision_tower  projector  table  gate   llm    lora
    ("pretrain", False): (False,        True,      True,  False, False, False),
    ("finetune", False): (False,        True,      False, True,  True,  False),
    ("finetune", True):  (False,        True,      False, True,  False, True),
}  # fmt: skip

_PREFIXES: dict[Part, str] = {
    "vision_tower": "model.vision_tower.",
    "projector": "model.projector.",
    "table": "model.alignment.table",
    "gate": "model.alignment.gate.",
    "llm": "model.language_model.",
}
"""Parameter name prefixes of each part."""

_DECAYED = "_decayed"
"""End of the name of a group whose parameters decay."""

_LORA = re.compile(r"model\.language_model\..*\.lora_[AB]\.")
"""Names of peft's matrices beside the LLM's own."""


@dataclass(frozen=True, slots=True)
class PartSize:
    """Number of parameters of a part, and whether they train."""

    part: Part
    parameters: int
    trains: bool


def trained_parts(phase: Phase, *, lora: bool = False) -> tuple[Part, ...]:
    """Return the parts that train in `phase`, in the order of PARTS, with or without `lora`.

    Raises:
        AlignError: LoRA in pre-training, where the LLM does not train.
    """
    if (phase, lora) not in _TABLE:
        raise AlignError(
            f"LoRA has no place in {phase}, where the LLM does not train; leave it out."
        )
    return tuple(part for part, trains in zip(PARTS, _TABLE[phase, lora], strict=True) if trains)


def part_of(name: str) -> Part:
    """Return the part of the model's parameter `name`.

    Raises:
        AlignError: it belongs to none.
    """
    if _LORA.match(name):
        return "lora"
    for part, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            return part
    raise AlignError(
        f"the parameter {name} belongs to no part of the model; give an "
        "AlignGPTForConditionalGeneration, not wrapped."
    )


def apply_phase(model: "nn.Module", phase: Phase) -> list[PartSize]:
    """Make exactly the parameters of `model` that train in `phase` require gradients.

    Returns:
        The sizes of the model's parts; with mixing `none` there is no table, for example.
    """
    trained = _trained(model, phase)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in trained)
    return part_sizes(model, phase)


def part_sizes(model: "nn.Module", phase: Phase) -> list[PartSize]:
    """Return the sizes of the parts of `model`, on any device or partitioned by ZeRO-3."""
    trained = _trained(model, phase)
    sizes = parameters_by_part(model)
    return [PartSize(part, size, part in trained) for part, size in sizes.items() if size]


def parameters_by_part(model: "nn.Module") -> dict[Part, int]:
    """Return the numbers of parameters of all parts; ZeRO-3 keeps that of a partitioned one."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        sizes[part_of(name)] += int(getattr(parameter, "ds_numel", parameter.numel()))
    return sizes


def parameter_groups(model: "nn.Module", settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return the parameters of `model` that require gradients as optimizer groups by part.

    Each group has `name`, `params`, `lr` (the part's own or the common one) and `weight_decay`.
    With weight decay, the parameters exempt from it (biases, norms, the table) form groups of
    their own.
    """
    own = {"projector": settings.projector_lr, "gate": settings.gate_lr}
    own |= dict.fromkeys(("llm", "lora"), settings.llm_lr)
    groups: dict[tuple[Part, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        matrix = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
        decays = settings.weight_decay > 0 and matrix and part != "table"
        if (part, decays) not in groups:
            groups[part, decays] = {
                "name": part + _DECAYED if decays else part,
                "params": [],
                "lr": own.get(part) or settings.lr,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
        groups[part, decays]["params"].append(parameter)
    return [group for _, group in sorted(groups.items(), key=lambda item: PARTS.index(item[0][0]))]


def group_part(group: Mapping[str, Any]) -> Part:
    """Return the part whose parameters are in the optimizer group `group`."""
    name: Any = group["name"].removesuffix(_DECAYED)
    return name


def _trained(model: "nn.Module", phase: Phase) -> tuple[Part, ...]:
    """Return the parts of `model` that train in `phase`; of an LLM with LoRA, the LoRA alone."""
    lora = any(part_of(name) == "lora" for name, _ in model.named_parameters())
    return trained_parts(phase, lora=lora)
