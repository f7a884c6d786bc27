"""The parts of a run, from what its folder says: device, model, processor, data."""

import os
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from alignshared import InputError
from aligntrain.data.dataset import ShardedDataset, relevel_of
from aligntrain.data.index import read_index
from aligntrain.data.loader import Loader, Preparation, RankSlice
from aligntrain.data.sampler import GlobalBatchSampler, Rows
from aligntrain.model.adapter import load_adapter
from aligntrain.model.build import DTYPES, build_config, build_model, build_processor
from aligntrain.model.lora import add_lora, four_bit_options
from aligntrain.model.modeling import AlignGPTForConditionalGeneration
from aligntrain.runs.folder import Job, levels_wanted
from aligntrain.train import checkpoint
from aligntrain.train.phases import apply_phase
from aligntrain.train.trainer import TrainingData


def compile_layers(model: nn.Module) -> None:
    """Have every layer of the towers of `model` compiled when it first runs.

    Names of modules and parameters stay what they are.

    Raises:
        InputError: nothing can be compiled here.
    """
    _try(next(model.parameters()).device)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def _try(device: torch.device) -> None:
    """Compile next to nothing: what is missing then shows before the first step, in a sentence."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"compile=true cannot be had here ({reason}); install a C++ compiler and Python's "
            "headers, or set compile to false."
        ) from error


def device_of_rank() -> torch.device:
    """This rank's GPU, or the CPU."""
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")


def build_parts(job: Job) -> tuple[Any, Any]:
    """Model and processor of `job`, in the host's memory; what trains requires gradients.

    New parts are drawn from the seed, so they are the same on all ranks.

    Raises:
        InputError: a part cannot be read, or the start is of another model.
    """
    recipe = job.recipe
    torch.manual_seed(recipe.seed)
    model = _model(job)
    if recipe.lora is not None:
        add_lora(model, recipe.lora)
    names = recipe.model
    processor = build_processor(
        names.vision_tower,
        names.llm,
        model.config,
        aspect=recipe.data.aspect,
        template=recipe.data.template,
    )
    apply_phase(model, recipe.phase)
    if recipe.gradient_checkpointing:
        # Under ZeRO-3 a parameter has its values only while its module runs, which the kind that
        # does not re-enter the graph cannot follow.
        model.model.language_model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": recipe.zero_stage == 3}
        )
    return model, processor


def _model(job: Job) -> Any:
    names = job.recipe.model
    dtype = DTYPES[job.recipe.precision]
    start, lora = job.start, job.recipe.lora
    quantize = lora is not None and lora.quantize == "4bit"
    if start is not None and start.model is not None:
        config = build_config(names.vision_tower, names.llm, **names.choices)
        keep = ("vision_tower", "projector", "alignment", "lm_head")
        options = four_bit_options(job.recipe.precision, keep=keep) if quantize else {}
        model: Any = AlignGPTForConditionalGeneration.from_pretrained(
            start.model, dtype=dtype, **options
        )
        there = checkpoint.model_identity(model.config)
        _check_start(start.model, there, checkpoint.model_identity(config))
    else:
        options = four_bit_options(job.recipe.precision) if quantize else {}
        model = build_model(
            names.vision_tower, names.llm, dtype=dtype, llm_options=options, **names.choices
        )
        if start is not None:
            load_adapter(model, start.adapter)
    if names.table == "random" and model.model.alignment is not None:
        torch.nn.init.xavier_uniform_(model.model.alignment.table)
    return model


def _check_start(where: str, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    for what, value in wanted.items():
        if there[what] != value:
            raise InputError(
                f"{where} is of another model: its {what} is {there[what]} and the recipe's "
                f"{value}; change the recipe, or start from another run."
            )


def open_data(job: Job, processor: Any) -> TrainingData:
    """The dataset of `job`, as this rank reads it.

    Raises:
        InputError: it is not what the run was made for, or cannot be used with this recipe.
    """
    recipe, data = job.recipe, job.recipe.data
    talks = data.template != "plain"
    shards = ShardedDataset(
        job.data,
        levels=levels_wanted(recipe),
        conversations=talks,
        relevel=relevel_of(data.levels, recipe.seed),
    )
    if shards.digest != job.data_sha256:
        raise InputError(
            f"{job.data} has changed since the run {job.folder} was made; start a new run on it."
        )
    index = read_index(shards, conversations=talks)
    order = GlobalBatchSampler.of(
        shards,
        index,
        index.train_rows(data.validation_share),
        global_size=recipe.batch.global_size,
        seed=recipe.seed,
        group=data.group_by_length,
    )
    preparation = Preparation.of(processor, template=data.template, max_length=data.max_length)
    share = RankSlice(
        recipe.batch.micro_size,
        torch.distributed.get_rank(),
        torch.distributed.get_world_size(),
    )
    train, validation = (
        Loader(
            shards,
            preparation,
            share,
            workers=data.workers,
            max_reject_share=data.max_reject_share,
        )
        for _ in range(2)
    )
    rows = _spread(index.validation_rows(data.validation_share), recipe.log.validate_samples)
    return TrainingData(order, share, train, validation, rows)


def _spread(rows: Rows, count: int | None) -> Rows:
    """`count` of `rows`, at equal distances; all of them for None."""
    if count is None or count >= len(rows):
        return rows
    return rows[np.arange(count) * len(rows) // count]
