"""Build a run's device, model, processor and data from its folder."""

import os

import numpy as np
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from alignshared import InputError
from alignshared.errors import one_line
from aligntrain.data.dataset import open_dataset
from aligntrain.data.index import read_index
from aligntrain.data.loader import Loader, Preparation, RankSlice
from aligntrain.data.sampler import GlobalBatchSampler
from aligntrain.model import build
from aligntrain.model.adapter import load_adapter
from aligntrain.model.lora import add_lora, four_bit_options
from aligntrain.model.modeling import AlignGPTForConditionalGeneration
from aligntrain.model.processing import AlignGPTProcessor
from aligntrain.runs.folder import RunSpec
from aligntrain.train.checkpoint import check_model, model_identity
from aligntrain.train.deepspeed_engine import on_gpu
from aligntrain.train.features import FeatureCache
from aligntrain.train.phases import apply_phase
from aligntrain.train.trainer import TrainingData

_KEPT_WHOLE = ("vision_tower", "projector", "alignment", "lm_head")
"""Model parts that QLoRA leaves in 16 bits."""


def device_of_rank() -> torch.device:
    """Return this rank's GPU, or the CPU."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu() else torch.device("cpu")


def build_model(spec: RunSpec) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Return a run's model and processor, in host memory; trained parameters require gradients.

    Raises:
        InputError: a part cannot be read, or the start is of another model.
    """
    recipe, names = spec.recipe, spec.recipe.model
    torch.manual_seed(recipe.seed)  # new parts are the same on all ranks
    model = _load_model(spec)
    model.config.cooldown = recipe.cooldown or 0.0  # of this phase, not of the one before
    if recipe.lora is not None:
        add_lora(model, recipe.lora)
    processor = build.build_processor(
        names.vision_tower,
        names.llm,
        model.config,
        aspect=recipe.data.aspect,
        template=recipe.data.template,
    )
    apply_phase(model, recipe.phase)
    if recipe.data.feature_cache_mb:
        model.model.read_images = FeatureCache(int(recipe.data.feature_cache_mb * 1e6))
    if recipe.gradient_checkpointing:
        # Under ZeRO-3 a parameter has its values only while its module runs, and checkpointing
        # that does not re-enter the graph recomputes outside of that.
        model.model.language_model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": recipe.zero_stage == 3}
        )
    return model, processor


def _load_model(spec: RunSpec) -> AlignGPTForConditionalGeneration:
    recipe, names, start = spec.recipe, spec.recipe.model, spec.start
    dtype = build.DTYPES[recipe.precision]
    quantize = recipe.lora is not None and recipe.lora.quantize == "4bit"
    if start is not None and start.model is not None:
        config = build.build_config(names.vision_tower, names.llm, **names.choices)
        options = four_bit_options(recipe.precision, keep=_KEPT_WHOLE) if quantize else {}
        model = AlignGPTForConditionalGeneration.from_pretrained(
            start.model, dtype=dtype, **options
        )
        check_model(
            start.model,
            model_identity(model.config),
            model_identity(config),
            "the recipe's {}; change the recipe, or start from another run.",
        )
    else:
        options = four_bit_options(recipe.precision) if quantize else {}
        model = build.build_model(
            names.vision_tower, names.llm, dtype=dtype, llm_options=options, **names.choices
        )
        if start is not None:
            load_adapter(model, start.adapter)
    if names.table == "random" and model.model.alignment is not None:
        torch.nn.init.xavier_uniform_(model.model.alignment.table)
    return model


def build_data(spec: RunSpec, processor: AlignGPTProcessor) -> TrainingData:
    """Return the batch sampler and this rank's loaders of a run.

    Raises:
        InputError: the dataset has changed since the run was made, or does not fit its recipe.
    """
    recipe, data = spec.recipe, spec.recipe.data
    dataset = open_dataset(recipe, spec.data)
    if dataset.digest != spec.data_sha256:
        raise InputError(
            f"{spec.data} has changed since the run {spec.folder} was made; start a new run on it."
        )
    index = read_index(dataset, conversations=data.template != "plain")
    sampler = GlobalBatchSampler.of(
        dataset,
        index,
        index.train_rows(data.validation_share),
        global_size=recipe.batch.global_size,
        seed=recipe.seed,
        group=data.group_by_length,
    )
    preparation = Preparation.of(processor, template=data.template, max_length=data.max_length)
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = RankSlice(recipe.batch.micro_size, rank, ranks)
    # Two loaders, since each counts its rejects.
    train, validation = (
        Loader(
            dataset,
            preparation,
            share,
            workers=data.workers,
            keep=int(data.feature_cache_mb * 1e6),
            max_reject_share=data.max_reject_share,
        )
        for _ in range(2)
    )
    rows, count = index.validation_rows(data.validation_share), recipe.log.validate_samples
    if count is not None and count < len(rows):
        rows = rows[np.arange(count) * len(rows) // count]  # evenly spaced
    return TrainingData(sampler, share, train, validation, rows)


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of the towers of `model` at its first run.

    Names of modules and parameters do not change.

    Raises:
        InputError: nothing can be compiled here.
    """
    try:  # a trivial function, so that a missing compiler shows before the first step
        torch.compile(torch.neg)(torch.ones(2, device=next(model.parameters()).device))
    except RuntimeError as error:
        raise InputError(
            f"compile=true cannot be had here ({one_line(error, 200)}); install a C++ compiler "
            "and Python's headers, or set compile to false."
        ) from error
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)
