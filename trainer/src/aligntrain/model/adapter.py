"""The small adapter file: what training adds to a vision tower and an LLM that stay as they were.

Projector, table and gate in one safetensors file, with the sizes they were made for.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import InputError, atomic

if TYPE_CHECKING:
    import torch

    from aligntrain.model import AlignGPTConfig, AlignGPTForConditionalGeneration

FORMAT = "aligngpt-adapter-1"
PARTS = ("model.projector.", "model.alignment.")
"""The parameters in the file, by the beginnings of their names in the model."""

_SIZES = {
    "vision_hidden_size": ("features in the vision tower's width", "projector"),
    "hidden_size": ("features in the language model's width", "projector"),
    "levels": ("levels", "alignment"),
    "image_tokens": ("image tokens", "alignment"),
    "gate_hidden": ("features in the gate's width", "alignment"),
}
"""What each size counts, and the part of the model that it is checked for."""


def adapter_weights(model: "AlignGPTForConditionalGeneration") -> dict[str, "torch.Tensor"]:
    """The parameters of `model` that belong into an adapter file, by name, not copied."""
    return {name: value for name, value in model.state_dict().items() if name.startswith(PARTS)}


def save_adapter(
    model: "AlignGPTForConditionalGeneration",
    path: str | Path,
    *,
    weights: "dict[str, torch.Tensor] | None" = None,
) -> None:
    """Write projector, table and gate of `model` to `path`; whole or not at all.

    `weights` are the parameters themselves where the model does not hold them whole (ZeRO-3);
    `adapter_weights` says which.
    """
    from safetensors.torch import save_file

    path = Path(path)
    chosen = adapter_weights(model) if weights is None else weights
    whole = {name: value.detach().cpu().contiguous() for name, value in chosen.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.file(path) as unfinished:
        save_file(whole, unfinished, metadata=_metadata(model.config))


def load_adapter(model: "AlignGPTForConditionalGeneration", path: str | Path) -> list[str]:
    """Put what the file `path` holds into `model`.

    A part that only one of the two has is left as it is: a gate where the file is of a model
    without one, say.

    Returns:
        The names of the parameters of `model`'s projector, table and gate that the file lacks.

    Raises:
        InputError: no such file, no adapter, or one of other sizes.
    """
    import torch

    metadata, weights = read_adapter(path)
    theirs, ours = json.loads(metadata["sizes"]), _sizes(model.config)
    shared = {name.split(".")[1] for name in adapter_weights(model).keys() & weights.keys()}
    scales = json.loads(metadata["choices"]).get("scales")
    if "projector" in shared and scales != model.config.scales:
        raise InputError(
            f"{path} is for vision_scales {scales}, but the model has {model.config.scales}; set "
            "model.vision_scales to the same."
        )
    for size, (meaning, part) in _SIZES.items():
        if part in shared and theirs[size] != ours[size]:
            raise InputError(
                f"{path} is for {theirs[size]} {meaning}, but the model has {ours[size]}; give the "
                "adapter of a model of the same sizes."
            )
    wanted = adapter_weights(model)
    with torch.no_grad():
        for name in wanted.keys() & weights.keys():
            wanted[name].copy_(weights[name])
    return sorted(wanted.keys() - weights.keys())


def read_adapter(path: str | Path) -> tuple[dict[str, str], dict[str, "torch.Tensor"]]:
    """Metadata and parameters of the adapter file `path`.

    Raises:
        InputError: no such file, or no adapter.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path} is no file; give the adapter.safetensors of a run.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); copy it again.") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is no adapter of this program ({FORMAT}); give one that a run wrote."
        )
    return metadata, weights


def _sizes(config: "AlignGPTConfig") -> dict[str, int]:
    return {
        "levels": config.levels,
        "image_tokens": config.image_tokens,
        "vision_hidden_size": config.vision_config.hidden_size,
        "hidden_size": config.text_config.hidden_size,
        "gate_hidden": config.gate_hidden,
    }


def _metadata(config: "AlignGPTConfig") -> dict[str, str]:
    choices: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            "mixing",
            "gate_text",
            "vision_feature_layer",
            "vision_feature_select",
            "scales",
        )
    }
    return {
        "format": FORMAT,
        "sizes": json.dumps(_sizes(config)),
        "choices": json.dumps(choices),
    }
