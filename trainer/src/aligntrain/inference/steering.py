"""Checks of a forced level and of guidance; needs no torch, so that commands check first."""

import math
from typing import TYPE_CHECKING

from alignshared import InputError

if TYPE_CHECKING:
    from aligntrain.model import AlignGPTConfig


def check_guidance(guidance: float) -> None:
    """Raise InputError unless `guidance` is a finite number above 0."""
    if not (math.isfinite(guidance) and guidance > 0):
        raise InputError(
            f"guidance must be a finite number above 0, and 1 is none (got {guidance:g})."
        )


def check_steering(config: "AlignGPTConfig", level: int | None, guidance: float = 1.0) -> None:
    """Raise InputError unless a model of `config` has `level`, and levels where guidance is on."""
    check_guidance(guidance)
    for name, given in (("level", level is not None), ("guidance", guidance != 1)):
        if given and not config.has_table:
            raise InputError(f"the model has mixing none and no levels; leave the {name} out.")
    if level is not None and not 1 <= level <= config.levels:
        raise InputError(f"there is no level {level}; give one from 1 to {config.levels}.")
