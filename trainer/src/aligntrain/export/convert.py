# transformers types its classes for its own use.
# pyright: reportAttributeAccessIssue=false
"""From the files of the AlignGPT and LLaVA-1.5 authors, or of earlier versions, to a model."""

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import InputError
from alignshared.errors import one_line
from aligntrain.export.earlier import convert_earlier, earlier_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from aligntrain.model.modeling import AlignGPTForConditionalGeneration

ADAPTER_FILES = ("mm_projector_align.bin", "mm_projector.bin")
CHECKPOINT_FILES = ("model*.safetensors", "pytorch_model*.bin")

_LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")
_RENAMED = {
    **{f"mm_projector.{layer}": f"model.projector.{layer}" for layer in _LAYERS},
    **{f"gated_weight_layer.mlp.{layer}": f"model.alignment.gate.{layer}" for layer in _LAYERS},
    "align_indicators.indicator_embs": "model.alignment.table",
}
"""The authors' names, without LLaVA's `model.` prefix, and the names here."""

_TOWER = "vision_tower.vision_tower."
_BUFFERS = ("rotary_emb.inv_freq", "position_ids")

Weights = dict[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Converted:
    """Result of `convert`. The parts in `new` were not in the source; they are initialised at
    random, as at the start of a phase.
    """

    output: Path
    kind: str
    levels: int | None
    mixing: str
    new: tuple[str, ...]


def convert(
    source: str | Path,
    output: str | Path,
    *,
    vision_tower: str | None = None,
    llm: str | None = None,
) -> Converted:
    """Read `source`, the authors' file or folder, and write model and processor to `output`.

    It may also be a run or a model of an earlier version, see `earlier`.

    A full checkpoint (stage 2) brings all weights; `mm_projector_align.bin` (stage 1) and LLaVA's
    `mm_projector.bin` need the vision tower and the LLM they were trained on. Both are names or
    folders as `build_model` takes them; by default those that `config.json` beside the file names.
    Pickles are read with `weights_only=True`.

    Raises:
        InputError: the source is not one of these, or does not fit the towers.
    """
    from aligntrain.model import AlignGPTConfig, build_processor
    from aligntrain.model.build import (
        assemble,
        load_llm,
        load_vision_tower,
        next_token_id,
        text_config,
        vision_config,
    )
    from aligntrain.train.save import forget_places

    source, output = Path(source), Path(output)
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty; give another output.")
    if (earlier := earlier_model(source)) is not None:
        return _of_an_earlier_version(earlier, output)
    folder = source if source.is_dir() else source.parent
    described = _described(folder)
    weights = _read_all(_files(source))
    trained = {_RENAMED[name]: value for name, value in weights.items() if name in _RENAMED}
    if "model.projector.0.weight" not in trained:
        raise InputError(
            f"{source} holds no mm_projector; give a file or folder of LLaVA or AlignGPT."
        )
    tower_name = _named("--vision-tower", vision_tower, described.get("mm_vision_tower"))
    full = "embed_tokens.weight" in weights
    llm_name = (
        str(folder) if full and not llm else _named("--llm", llm, described.get("_name_or_path"))
    )
    text = _text_config(described) if full and not llm else text_config(llm_name)
    choices = _choices(trained, described)
    choices |= {"image_token_id": next_token_id(llm_name), "gate_text": "full"}
    config = AlignGPTConfig(vision_config(tower_name), text, **choices)
    dtype = trained["model.projector.0.weight"].dtype
    tower = load_vision_tower(tower_name, dtype=dtype)
    if full:
        _fill_tower(tower, weights)
        language_model = _llm_of(config.text_config, weights, dtype)
    else:
        language_model = load_llm(llm_name, dtype=dtype)
    model = assemble(config, tower, language_model, dtype=dtype)
    new = _fill(model, trained, source)
    processor = build_processor(
        tower_name, llm_name, config, template="vicuna_v1" if full else "plain",
        aspect="pad" if described.get("image_aspect_ratio") == "pad" else "crop",
    )  # fmt: skip
    forget_places(model.config)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return Converted(output, "full" if full else "adapter", config.levels, config.mixing, new)


def _of_an_earlier_version(folder: Path, output: Path) -> Converted:
    config = convert_earlier(folder, output)
    return Converted(output, "of an earlier version", config.levels, config.mixing, ())


def _described(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json` in `folder`, empty without one."""
    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _files(source: Path) -> list[Path]:
    """Return the weight files of `source`; a full checkpoint comes before an adapter."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"{source} does not exist; give a file or folder of LLaVA or AlignGPT.")
    for pattern in (*CHECKPOINT_FILES, *ADAPTER_FILES):
        if files := sorted(source.glob(pattern)):
            return files
    known = ", ".join((*CHECKPOINT_FILES, *ADAPTER_FILES))
    raise InputError(f"{source} holds none of {known}; give a file or folder of LLaVA or AlignGPT.")


def _read_all(files: list[Path]) -> Weights:
    """Return the weights in `files` by name without the prefix `model.`, and no buffers."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: Weights = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                weights |= load_file(file)
            else:
                weights |= torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
            raise InputError(
                f"{file} cannot be read without running code in it, or is damaged; give a plain "
                "state_dict."
            ) from error
        except SafetensorError as error:
            raise InputError(f"{file} is damaged ({error}); copy it again.") from error
    return {
        name.removeprefix("model."): value
        for name, value in weights.items()
        if not name.endswith(_BUFFERS)
    }


def _named(option: str, name: str | None, described: Any) -> str:
    if name or described:
        return str(name or described)
    raise InputError(f"no config.json beside the source says which was used; give {option}.")


def _choices(trained: Weights, described: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that follow from the weights and LLaVA's `config.json`."""
    table, gate = trained.get("model.alignment.table"), trained.get("model.alignment.gate.0.weight")
    choices: dict[str, Any] = {"mixing": "none" if table is None else "adaptive"}
    if table is not None:
        choices["levels"] = table.shape[0]
    if gate is not None:
        choices["gate_hidden"] = gate.shape[0]
    if "mm_vision_select_layer" in described:
        choices["vision_feature_layer"] = described["mm_vision_select_layer"]
    if described.get("mm_vision_select_feature") == "cls_patch":
        choices["vision_feature_select"] = "full"
    return choices


def _text_config(described: dict[str, Any]) -> "PreTrainedConfig":
    """Return the LLM's part of a checkpoint's configuration, a type unknown to transformers."""
    from transformers import AutoConfig, LlamaConfig

    text = {
        key: value
        for key, value in described.items()
        if not key.startswith(("mm_", "tune_", "freeze_", "use_mm_"))
        and key not in ("architectures", "auto_map", "image_aspect_ratio", "model_type")
    }
    architecture = (described.get("architectures") or [""])[0].lower()
    for model_type in ("mistral", "qwen2", "gemma", "phi"):
        if model_type in architecture:
            return AutoConfig.for_model(model_type, **text)
    return LlamaConfig(**text)


def _llm_of(
    text_config: "PreTrainedConfig", weights: Weights, dtype: "torch.dtype"
) -> "PreTrainedModel":
    """Return the causal LM of `text_config` with its part of `weights`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    apart = ("mm_projector.", "vision_tower.", "align_indicators.", "gated_weight_layer.")
    own = {
        name if name.startswith("lm_head.") else f"model.{name}": value
        for name, value in weights.items()
        if not name.startswith(apart)
    }
    model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(text_config)].from_pretrained(
        None, config=text_config, state_dict=own, dtype=dtype, output_loading_info=True
    )
    if info["missing_keys"] or info["unexpected_keys"]:
        name = sorted([*info["missing_keys"], *info["unexpected_keys"]])[0]
        raise InputError(
            f"the checkpoint's language model does not fit its config.json ({name}); give --llm."
        )
    return model


def _fill_tower(tower: "PreTrainedModel", weights: Weights) -> None:
    """Copy the vision weights of a full checkpoint into `tower`."""
    own = {
        name.removeprefix(_TOWER).removeprefix("vision_model."): value
        for name, value in weights.items()
        if name.startswith(_TOWER)
    }
    if not own:
        return
    nested = any(name.startswith("vision_model.") for name in tower.state_dict())
    prefix = "vision_model." if nested else ""
    try:
        tower.load_state_dict({prefix + name: value for name, value in own.items()})
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint has another vision tower: {one_line(error, 200)}; give --vision-tower."
        ) from error


def _fill(
    model: "AlignGPTForConditionalGeneration", trained: Weights, source: Path
) -> tuple[str, ...]:
    """Copy `trained` into projector, table and gate; return the parts that it lacks."""
    import torch

    own = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("model.projector.", "model.alignment."))
    }
    for name, value in trained.items():
        if name in own and own[name].shape != value.shape:
            raise InputError(
                f"{source} has {name} of the shape {list(value.shape)}, but these towers make it "
                f"{list(own[name].shape)}; give the --vision-tower and --llm it was trained on."
            )
    with torch.no_grad():
        for name in own.keys() & trained.keys():
            own[name].copy_(trained[name])
    return tuple(sorted({name.split(".")[2] for name in own.keys() - trained.keys()}))
