"""Steps of one recipe on full batches: their seconds, their peak memory, and what `aligntrain plan`
says of that.

On a CPU the memory is the process's resident one above what it had before there was a model; on a
GPU what torch has allocated. Started with RANK and WORLD_SIZE, it is one of several processes.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from aligntrain.plan.estimate import plan
from aligntrain.recipes import Recipe, load_recipe
from aligntrain.runs.folder import RunSpec
from aligntrain.train import deepspeed_engine as zero
from aligntrain.train.setup import build_model, device_of_rank

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TEXT = 100
"""The id of every token of text; which one costs nothing."""


def main() -> None:
    """Tell `predicted` and `measured` bytes, and `seconds` of a step, on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("phase", choices=("pretrain", "finetune"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--images", type=int, default=1, help="in each sample")
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, given.phase, given.overrides)
    predicted = plan(recipe, gpus=int(os.environ.get("WORLD_SIZE", "1"))).memory()
    found = measure(recipe, given.images, given.steps)
    sys.stdout.write(json.dumps({"predicted": predicted, **found}) + "\n")


def measure(recipe: Recipe, images: int, steps: int) -> dict[str, float]:
    """Bytes that the model, its engine and `steps` steps take at most, and seconds of a step."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for name, value in (alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541"}).items():
        os.environ.setdefault(name, value)
    zero.choose_accelerator()
    device = device_of_rank()
    zero.start_process(device)
    # Once in small, so that libraries are loaded.
    small = recipe.batch.model_copy(update={"micro_size": 1})
    _work(recipe.model_copy(update={"batch": small}), images, 1)
    before = _begin(device)
    seconds = _work(recipe, images, steps)
    peak = _peak(device) - before
    zero.stop_process()
    return {"measured": peak, "seconds": seconds}


def _work(recipe: Recipe, images: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        model, _ = build_model(RunSpec(Path(folder), recipe, data="", data_sha256=""))
    engine = zero.build_engine(model, recipe, micro_batches=1)
    if recipe.batch.packing:
        model.prepare_packing()
    batch = {
        name: value.to(engine.device)
        for name, value in _batch(recipe, model.config, images).items()
    }
    packed = {"packed": True, "logits_bytes": recipe.batch.logits_bytes}
    how = packed if recipe.batch.packing else {}
    engine.train()
    took: list[float] = []
    for _ in range(steps):
        began = time.perf_counter()
        loss = engine(**batch, **how, use_cache=False).loss
        assert loss is not None  # the batch has labels
        engine.backward(loss)
        engine.step()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:] or took)


def _batch(recipe: Recipe, config: Any, images: int) -> dict[str, torch.Tensor]:
    """`batch.micro_size` rows of `data.max_length` tokens, with `images` and labels in each."""
    rows, length = recipe.batch.micro_size, recipe.data.max_length
    ids = torch.full((rows, length), _TEXT)
    ids[:, 0] = config.align_token_id
    ids[:, 1 : 1 + images * config.image_tokens] = config.image_token_id
    labels = ids.masked_fill(ids != _TEXT, -100)
    side = config.vision_config.image_size
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values": torch.rand(rows * images, 3, side, side),
    }
    if recipe.phase == "pretrain":
        batch["levels"] = torch.ones(rows, dtype=torch.long)
    return batch


def _begin(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    CLEAR.write_text("5", encoding="ascii")  # the kernel then counts the peak anew
    return _resident("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    main()
