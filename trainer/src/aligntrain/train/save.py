"""Export of a finished run: the model in transformers' form, and its small adapter file.

A LoRA run exports only its trained part, some hundred MB instead of many GB: LoRA in peft's form,
the adapter file, and the location of the base. `aligntrain merge` makes a whole model of it.
"""

import logging
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from alignshared import AlignError, atomic
from alignshared.stores.filesystems import is_place, public_name
from aligntrain.inference.load import Base
from aligntrain.model.adapter import PARTS, save_adapter
from aligntrain.model.lora import save_lora
from aligntrain.runs.card import write_card
from aligntrain.runs.folder import ADAPTER, EXPORT, LORA, RunSpec
from aligntrain.train.deepspeed_engine import full_state
from aligntrain.train.phases import part_of

if TYPE_CHECKING:
    import torch
    from transformers import LlavaConfig

    from aligntrain.model import AlignGPTConfig
    from aligntrain.model.modeling import AlignGPTForConditionalGeneration
    from aligntrain.model.processing import AlignGPTProcessor

USE = """import aligntrain  # registers the model with transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")"""
LORA_USE = """import aligntrain

model, processor = aligntrain.load_model(".")"""

log = logging.getLogger("aligntrain")


def export(
    model: "AlignGPTForConditionalGeneration", processor: "AlignGPTProcessor", spec: RunSpec
) -> None:
    """Write `export/` in the run folder: weights, configuration, processor, adapter.

    All ranks call it; ZeRO-3 gathers the parameters one by one, and rank 0 holds the whole model in
    the host's memory.
    """
    import torch.distributed as ranks

    names = None
    if spec.recipe.lora is not None:
        parts = ("projector", "table", "gate", "lora")
        names = {name for name, _ in model.named_parameters() if part_of(name) in parts}
    state = full_state(model, names)
    if ranks.get_rank() == 0:
        with atomic.folder(spec.folder / EXPORT, replace=True) as unfinished:
            if names is None:
                write_model(model, processor, unfinished, state)
                card = {"kind": "A whole model.", "use": USE}
            else:
                _write_lora(model, processor, unfinished, state, Base.of(spec))
                notes = "`base.json` says where the weights are that these files lack."
                card = {"kind": "What LoRA has learned.", "use": LORA_USE, "notes": notes}
            try:
                write_card(unfinished, spec.folder, **card)
            except (AlignError, OSError, LookupError, TypeError, ValueError) as error:
                # An unreadable lineage costs the card, not the run.
                log.warning("the model card of %s was not written: %s", unfinished, error)
    ranks.barrier()


def _write_lora(
    model: "AlignGPTForConditionalGeneration",
    processor: "AlignGPTProcessor",
    folder: Path,
    state: "dict[str, torch.Tensor]",
    base: Base,
) -> None:
    """Write the trained part of a LoRA run on `base`, `state`: LoRA, adapter, configuration."""
    weights = {name: value for name, value in state.items() if part_of(name) == "lora"}
    save_lora(model, folder / LORA, weights, base=public_name(base.name))
    config = deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    for section in (config, config.text_config):  # the base is in 16 bits, and 4 are this run's
        vars(section).pop("quantization_config", None)
    forget_places(config)
    config.save_pretrained(folder)
    base.write(folder)
    processor.save_pretrained(folder)
    save_adapter(model, folder / ADAPTER, weights=_adapter(state))


def write_model(
    model: "AlignGPTForConditionalGeneration",
    processor: "AlignGPTProcessor",
    folder: Path,
    state: "dict[str, torch.Tensor]",
) -> None:
    """Write `model`, with the whole tensors `state`, to `folder`, with processor and adapter."""
    adapter = _adapter(state)
    forget_places(model.config)
    model.save_pretrained(folder, state_dict=state)  # which takes the state apart
    processor.save_pretrained(folder)
    save_adapter(model, folder / ADAPTER, weights=adapter)


def forget_places(config: "AlignGPTConfig | LlavaConfig") -> None:
    """Drop the folders that the parts of `config` were loaded from; names of the Hub stay.

    transformers writes them into config.json, for others to read.
    """
    from transformers import PreTrainedConfig

    for part in (config.vision_config, config.text_config):
        if isinstance(part, PreTrainedConfig) and is_place(part.name_or_path or ""):
            part.name_or_path = ""


def _adapter(state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    return {name: value for name, value in state.items() if name.startswith(PARTS)}
