"""Processes that start in no time: they are forked from one that has imported what they need."""

import multiprocessing
import os
from multiprocessing import forkserver as server
from typing import Any
from unittest.mock import patch

PRELOADED = (
    # curation
    "aligncurate.stages.score", "tests.curation.faults.killing",
    # training
    "aligntrain.train.loggers", "aligntrain.train.save", "aligntrain.train.setup",
    "aligntrain.train.trainer", "deepspeed", "pandas", "tests.trainer.ranks",
)  # fmt: skip


def forkserver() -> Any:
    """A context of multiprocessing; all tests of a process share its server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with patch.dict(os.environ, DS_ACCELERATOR="cpu"):  # DeepSpeed's import reads it
        server.ensure_running()
    return context
