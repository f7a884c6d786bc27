"""What a finished run leaves: the model in transformers' form, and its small adapter file.

Of a LoRA run only what was learned, some hundred MB where the model has many GB: LoRA in peft's
form, the adapter file, and where the rest lies. `aligntrain merge` makes a whole model of it.
"""

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import AlignError, atomic
from aligntrain.inference.load import Base
from aligntrain.model.adapter import PARTS, save_adapter
from aligntrain.model.lora import LORA, save_lora
from aligntrain.runs.card import write_card
from aligntrain.runs.folder import ADAPTER, EXPORT
from aligntrain.train.deepspeed_engine import full_state
from aligntrain.train.phases import part_of

if TYPE_CHECKING:
    import torch

USE = """import aligntrain  # registers the model with transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")"""
LORA_USE = """import aligntrain

model, processor = aligntrain.load_model(".")"""

log = logging.getLogger("aligntrain")


def export(model: Any, processor: Any, run: Path) -> None:
    """Write `export/` in the run folder `run`: weights, configuration, processor, adapter.

    All ranks call it; ZeRO-3 gathers the parameters one by one, and rank 0 holds the whole model in
    the host's memory.
    """
    state = full_state(model)

    def write(folder: Path) -> None:
        write_model(model, processor, folder, state)
        _card(folder, run, kind="A whole model.", use=USE)

    _on_rank_0(run, write)


def export_lora(model: Any, processor: Any, run: Path, base: Base) -> None:
    """Write `export/` of a LoRA run on `base`: LoRA, adapter, configuration, processor.

    All ranks call it; only what trains is gathered, and the table.
    """
    parts = ("projector", "table", "gate", "lora")
    state = full_state(model, {n for n, _ in model.named_parameters() if part_of(n) in parts})

    def write(folder: Path) -> None:
        weights = {name: value for name, value in state.items() if part_of(name) == "lora"}
        save_lora(model, folder / LORA, weights, base=base.name)
        config = deepcopy(model.config)
        config.architectures, config.dtype = [type(model).__name__], model.dtype
        for section in (config, config.text_config):  # the base is in 16 bits, and 4 are this run's
            vars(section).pop("quantization_config", None)
        config.save_pretrained(folder)
        base.write(folder)
        processor.save_pretrained(folder)
        save_adapter(model, folder / ADAPTER, weights=_adapter(state))
        notes = "`base.json` says where the weights are that these files lack."
        _card(folder, run, kind="What LoRA has learned.", use=LORA_USE, notes=notes)

    _on_rank_0(run, write)


def write_model(model: Any, processor: Any, folder: Path, state: "dict[str, torch.Tensor]") -> None:
    """Write `model`, whose whole tensors are `state`, to `folder`, with processor and adapter."""
    adapter = _adapter(state)
    model.save_pretrained(folder, state_dict=state)  # which takes the state apart
    processor.save_pretrained(folder)
    save_adapter(model, folder / ADAPTER, weights=adapter)


def _card(folder: Path, run: Path, **options: str) -> None:
    """Write the card of an export; a lineage that cannot be read costs the card and not the run."""
    try:
        write_card(folder, run, **options)
    except (AlignError, OSError, LookupError, TypeError, ValueError) as error:
        log.warning("the model card of %s was not written: %s", folder, error)


def _adapter(state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    return {name: value for name, value in state.items() if name.startswith(PARTS)}


def _on_rank_0(run: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill the export of `run` under another name, on rank 0, while others wait."""
    import torch.distributed as ranks

    if ranks.get_rank() == 0:
        with atomic.folder(run / EXPORT, replace=True) as unfinished:
            write(unfinished)
    ranks.barrier()
