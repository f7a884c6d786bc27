"""Adapter file: projector, table and gate in one safetensors file, with their sizes.

Contains all that pre-training adds to an unchanged vision tower and LLM.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import InputError, atomic

if TYPE_CHECKING:
    import torch

    from aligntrain.model.configuration import AlignGPTConfig
    from aligntrain.model.modeling import AlignGPTForConditionalGeneration

FORMAT = "aligngpt-adapter-1"
PARTS = ("model.projector.", "model.alignment.")
"""Prefixes of the file's parameters by their names in the model."""

_SIZES = {
    "vision_hidden_size": ("features in the vision tower's width", "projector"),
    "hidden_size": ("features in the language model's width", "projector"),
    "levels": ("levels", "alignment"),
    "image_tokens": ("image tokens", "alignment"),
    "gate_hidden": ("features in the gate's width", "alignment"),
}
"""Meaning of each size, and the model part it is checked against."""

_CHOICES = (
    "mixing",
    "gate_text",
    "vision_feature_layer",
    "vision_feature_select",
    "scales",
    "vision_pixel_shuffle",
)


def adapter_weights(model: "AlignGPTForConditionalGeneration") -> dict[str, "torch.Tensor"]:
    """Return the parameters of `model` in an adapter file, by name, not copied."""
    return {name: value for name, value in model.state_dict().items() if name.startswith(PARTS)}


def save_adapter(
    model: "AlignGPTForConditionalGeneration",
    path: str | Path,
    *,
    weights: "dict[str, torch.Tensor] | None" = None,
) -> None:
    """Write projector, table and gate of `model` to `path`; whole or not at all.

    `weights` are the whole parameters by the names of `adapter_weights`, for a model partitioned by
    ZeRO-3.
    """
    from safetensors.torch import save_file

    path, config = Path(path), model.config
    chosen = adapter_weights(model) if weights is None else weights
    whole = {name: value.detach().cpu().contiguous() for name, value in chosen.items()}
    metadata = {
        "format": FORMAT,
        "sizes": json.dumps(_sizes(config)),
        "choices": json.dumps({name: getattr(config, name) for name in _CHOICES}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.file(path) as unfinished:
        save_file(whole, unfinished, metadata=metadata)


def load_adapter(model: "AlignGPTForConditionalGeneration", path: str | Path) -> list[str]:
    """Load the file `path` into `model`.

    A part missing on either side, such as a gate, is unchanged.

    Returns:
        The names of the parameters of `model`'s projector, table and gate that the file lacks.

    Raises:
        InputError: no such file, no adapter, or one of other sizes.
    """
    import torch

    metadata, weights = _read(path)
    saved, sizes = json.loads(metadata["sizes"]), _sizes(model.config)
    parameters = adapter_weights(model)
    shared = {name.split(".")[1] for name in parameters.keys() & weights.keys()}
    if "projector" in shared:
        _check_features(path, json.loads(metadata["choices"]), model.config)
    for size, (meaning, part) in _SIZES.items():
        if part in shared and saved[size] != sizes[size]:
            raise InputError(
                f"{path} is for {saved[size]} {meaning}, but the model has {sizes[size]}; give the "
                "adapter of a model of the same sizes."
            )
    with torch.no_grad():
        for name in parameters.keys() & weights.keys():
            parameters[name].copy_(weights[name])
    return sorted(parameters.keys() - weights.keys())


def _check_features(path: str | Path, choices: dict[str, Any], config: "AlignGPTConfig") -> None:
    """Raise InputError unless the projector in `path` was trained on features made as here."""
    for name, key, default in (
        ("scales", "vision_scales", None),
        ("vision_pixel_shuffle", "vision_pixel_shuffle", 1),
    ):
        theirs, own = choices.get(name, default), getattr(config, name)
        if theirs != own:
            raise InputError(
                f"{path} is for {key} {theirs}, but the model has {own}; set model.{key} to the "
                "same."
            )


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, "torch.Tensor"]]:
    """Return metadata and parameters of the adapter file `path`."""
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
