"""What a finished run leaves: the model in transformers' form, and its small adapter file."""

import os
import shutil
from pathlib import Path
from typing import Any

from aligntrain.adapter import PARTS, save_adapter
from aligntrain.job import ADAPTER, EXPORT
from aligntrain.zero import full_state

_UNFINISHED = ".unfinished-export"


def export(model: Any, processor: Any, run: Path) -> None:
    """Write `export/` in the run folder `run`: weights, configuration, processor, adapter.

    All ranks call it; ZeRO-3 gathers the parameters one by one, and rank 0 holds the whole model in
    the host's memory.
    """
    import torch.distributed as ranks

    state = full_state(model)
    if ranks.get_rank() == 0:
        final, unfinished = run / EXPORT, run / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        adapter = {name: value for name, value in state.items() if name.startswith(PARTS)}
        model.save_pretrained(unfinished, state_dict=state)  # which takes the state apart
        processor.save_pretrained(unfinished)
        save_adapter(model, unfinished / ADAPTER, weights=adapter)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(unfinished, final)
    ranks.barrier()
