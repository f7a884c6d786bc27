"""torch.compile, layer by layer.

Each layer of the LLM and of the vision tower is compiled by itself. The layers of a tower are
alike, so one compilation serves them all, where that of a whole model takes many minutes. Lengths
are symbols in it, so batches of any length share it too. Where the samples of a packed row end is
known only when it runs, so attention over them stays as it is.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from alignshared import InputError


def compile_layers(model: nn.Module) -> None:
    """Have every layer of the towers of `model` compiled when it first runs.

    Names of modules and parameters stay what they are.

    Raises:
        InputError: nothing can be compiled here.
    """
    _try(next(model.parameters()).device)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def _try(device: torch.device) -> None:
    """Compile next to nothing: what is missing then shows before the first step, in a sentence."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"compile=true cannot be had here ({reason}); install a C++ compiler and Python's "
            "headers, or set compile to false."
        ) from error
