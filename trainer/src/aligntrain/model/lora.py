"""LoRA: small trainable matrices beside the LLM's frozen ones. peft creates, reads, writes and
merges them; only this module imports peft and bitsandbytes.

They are injected into the LLM itself, which stays a causal LM of transformers. Parameters, beside
those in `model.modeling`:

    model.language_model.….q_proj.base_layer.weight        the LLM's own
    model.language_model.….q_proj.lora_A.default.weight    [rank, inputs]
    model.language_model.….q_proj.lora_B.default.weight    [outputs, rank]
"""

from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import InputError
from alignshared.errors import hint, one_line
from aligntrain.recipes.schema import LoraSettings, Precision

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    from aligntrain.model.modeling import AlignGPTForConditionalGeneration

_ALL = "all-linear"
_NAME = "default"
"""peft's name for an adapter without one."""
_LLM = "model.language_model."
_PEFT = "base_model.model."
"""Prefix of the LLM's names in peft's files."""
_WEIGHTS = "adapter_model.safetensors"


def add_lora(model: "AlignGPTForConditionalGeneration", settings: LoraSettings) -> None:
    """Inject new LoRA matrices into the LLM of `model`, in its weights' dtype: A random, B zero.

    Raises:
        InputError: a target is no matrix of this LLM.
    """
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    llm = model.model.language_model
    targets = target_names(llm, settings.targets)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.scale,
        lora_dropout=settings.dropout,
        target_modules=targets,
        # GPT-2 keeps its matrices the other way round, in a class of transformers' own.
        fan_in_fan_out=type(llm.get_submodule(targets[0])).__name__ == "Conv1D",
    )
    inject_adapter_in_model(config, llm, _NAME)


def target_names(llm: "PreTrainedModel", targets: tuple[str, ...]) -> list[str]:
    """Return the full names of the modules of `llm` that match `targets` (`LoraSettings`)."""
    known = list(linear_layers(llm))
    if targets == (_ALL,):
        return known
    meant = {t: [name for name in known if f".{name}".endswith(f".{t}")] for t in targets}
    for target, names in meant.items():
        if not names:
            leaves = sorted({name.rpartition(".")[2] for name in known})
            near = hint(target.rpartition(".")[2], [*leaves, _ALL])
            raise InputError(f"lora.targets names {target}, which is no matrix of this LLM; {near}")
    chosen = {name for names in meant.values() for name in names}
    return [name for name in known if name in chosen]


def linear_layers(llm: "PreTrainedModel") -> "dict[str, nn.Linear | Conv1D]":
    """Return the linear layers of `llm` by name, in order, without its head and LoRA's own.

    The head may share its matrix with the embeddings, which LoRA would change.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = llm.get_output_embeddings()
    return {
        name: module
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in name
    }


def features_read(layer: "nn.Linear | Conv1D") -> int:
    """Return the input width of one of the `linear_layers`."""
    features = getattr(layer, "in_features", None)
    return int(layer.weight.shape[0] if features is None else features)


def four_bit_options(precision: Precision, *, keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return options of `from_pretrained` that hold an LLM in 4 bits on this rank's GPU.

    NF4 with double quantization, computing in `precision`; modules named in `keep` stay as they
    are.

    Raises:
        InputError: there is no CUDA GPU here, or bitsandbytes is not installed.
    """
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "lora.quantize 4bit needs a CUDA GPU and there is none here; set it to none."
        )
    if find_spec("bitsandbytes") is None:
        raise InputError("lora.quantize 4bit needs bitsandbytes; install aligntrain[qlora].")
    from transformers import BitsAndBytesConfig

    from aligntrain.model.build import DTYPES

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[precision],
        llm_int8_skip_modules=list(keep) or None,
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def save_lora(
    model: "AlignGPTForConditionalGeneration",
    folder: Path,
    weights: dict[str, "torch.Tensor"],
    *,
    base: str,
) -> None:
    """Write the LoRA of `model` to `folder` as peft does, for the LLM called `base`.

    `weights` are its matrices by their names in `model`, whole also under ZeRO-3.
    peft's `PeftModel.from_pretrained(llm, folder)` reads it.
    """
    from safetensors.torch import save_file

    config = copy(model.model.language_model.peft_config[_NAME])
    config.base_model_name_or_path = base
    config.target_modules = sorted(config.target_modules)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    named = {_file_name(name): value.contiguous() for name, value in weights.items()}
    save_file(named, folder / _WEIGHTS, metadata={"format": "pt"})


def load_lora(model: "AlignGPTForConditionalGeneration", folder: Path) -> None:
    """Load the LoRA in `folder` into the LLM of `model`; InputError if damaged or another LLM's."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    llm = model.model.language_model
    try:
        saved = load_file(folder / _WEIGHTS)
        inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), llm, _NAME)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise InputError(
            f"the LoRA in {folder} cannot be read: {one_line(error, 200)}; copy it again."
        ) from error
    own = {_file_name(n): p for n, p in model.named_parameters() if ".lora_" in n}
    shapes, saved_shapes = ({n: t.shape for n, t in tensors.items()} for tensors in (own, saved))
    if shapes != saved_shapes:
        names = shapes.keys() | saved_shapes.keys()
        name = min(name for name in names if shapes.get(name) != saved_shapes.get(name))
        raise InputError(
            f"the LoRA in {folder} does not fit this LLM ({name} differs); give the one that it "
            "was trained on."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def merge_lora(model: "AlignGPTForConditionalGeneration") -> int:
    """Merge LoRA into the LLM's own matrices; return their number. Outputs stay, up to rounding."""
    from peft.tuners.lora import LoraLayer

    llm = model.model.language_model
    layers = {name: module for name, module in llm.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        layer.merge(safe_merge=True)
        llm.set_submodule(name, layer.get_base_layer())
    del llm.peft_config
    return len(layers)


def _file_name(name: str) -> str:
    """Return peft's name in its files for the model's parameter `name`."""
    return _PEFT + name.removeprefix(_LLM).replace(f".{_NAME}.", ".")
