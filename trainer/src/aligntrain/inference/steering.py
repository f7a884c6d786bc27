"""Checks of a forced level and of guidance; needs no torch, so that commands check first."""

from typing import TYPE_CHECKING

from alignshared import InputError
from aligntrain.prompts.placeholders import check_level

if TYPE_CHECKING:
    from aligntrain.model import AlignGPTConfig


MOST_GUIDANCE = 1000.0
"""Maximum guidance: far beyond use, and far below where float32 overflows."""


def check_guidance(guidance: float) -> None:
    """Raise InputError unless `guidance` is above 0 and at most MOST_GUIDANCE."""
    if not 0 < guidance <= MOST_GUIDANCE:
        raise InputError(
            f"guidance must be above 0 and at most {MOST_GUIDANCE:g}, where 1 is none (got "
            f"{guidance:g})."
        )


def check_steering(config: "AlignGPTConfig", level: int | None, guidance: float = 1.0) -> None:
    """Raise InputError unless a model of `config` has `level`, and levels where guidance is on."""
    check_guidance(guidance)
    if level is not None:
        check_level(level, config.levels if config.has_table else 0)
    if guidance != 1 and not config.has_table:
        raise InputError("the model has mixing none and no levels; leave the guidance out.")
