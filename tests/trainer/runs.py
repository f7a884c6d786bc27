"""Runs small enough for a test: towers on disk, recipes, datasets, and this process as a worker."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import CLIPVisionModel, LlamaForCausalLM

from alignshared import Dataset
from aligntrain.runs.folder import read_metrics
from aligntrain.train import deepspeed_engine as zero
from aligntrain.train import main as worker
from tests.trainer import rows, tiny

LEVELS = 4


def towers(folder: Path) -> tuple[Path, Path]:
    """A tiny vision tower and a tiny LLM, as transformers saves them."""
    vision, llm = folder / "vision", folder / "llm"
    torch.manual_seed(0)
    CLIPVisionModel(tiny.vision_config()).save_pretrained(vision)
    tiny.image_processor().save_pretrained(vision)
    LlamaForCausalLM(tiny.text_config()).save_pretrained(llm)
    tiny.tokenizer().save_pretrained(llm)
    return vision, llm


def recipe_file(folder: Path) -> Path:
    """The recipe `tiny`, of towers in `folder`."""
    vision, llm = towers(folder)
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
common:
  model: {{vision_tower: {vision}, llm: {llm}, levels: {LEVELS}}}
  data: {{max_length: 96, validation_share: 0.2, workers: 0}}
  precision: fp32
  max_steps: 6
  checkpoint: {{every: 2, keep: 2}}
  log: {{every: 1, validate_every: 3}}
pretrain:
  data: {{template: plain}}
  optimizer: {{lr: 3e-3, warmup_ratio: 0.2}}
  batch: {{global_size: 8, micro_size: 4}}
finetune:
  data: {{template: vicuna_v1, max_length: 256, group_by_length: true}}
  optimizer: {{lr: 1e-3, projector_lr: 2e-3, gate_lr: 3e-3, weight_decay: 0.1}}
  batch: {{global_size: 8, micro_size: 4}}
""",
        encoding="utf-8",
    )
    return path


def pairs(folder: Path, count: int = 48, levels: int = LEVELS) -> Dataset:
    """A levelled dataset."""
    return rows.write_rows(folder, rows.pair_rows(count, levels), levels=levels)


def talks(folder: Path, count: int = 48, text_every: int = 3) -> Dataset:
    """An instruction dataset, of which each `text_every`th row has no image."""
    return rows.write_rows(folder, rows.talk_rows(count, text_every))


@contextmanager
def as_worker() -> Iterator[None]:
    """This process as the only rank, for as long as the tests run."""
    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    alone = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    log = logging.getLogger("aligntrain")
    kept = log.level, log.handlers, log.propagate
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, alone))
        yield
    log.level, log.handlers, log.propagate = kept


@contextmanager
def joined() -> Iterator[None]:
    """This process in a group of its own, as `worker` joins one; inside `as_worker`."""
    zero.start_process(torch.device("cpu"))
    yield


def train(
    folder: Path, *, resume: bool = False, profile: int | None = None
) -> list[dict[str, Any]]:
    """Work on the run folder `folder` in this process; the lines of its metrics."""
    with as_worker():
        worker.work(folder, resume=resume, profile=profile)
    return read_metrics(folder)


def losses(lines: list[dict[str, Any]]) -> dict[int, float]:
    """The loss of each step."""
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def held_out(lines: list[dict[str, Any]]) -> dict[int, float]:
    """The validation loss after each step that has one."""
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
