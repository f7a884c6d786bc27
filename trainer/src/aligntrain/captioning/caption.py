"""`aligntrain caption`: a model's captions for the images of a dataset, as a new dataset."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import Console

from alignshared import Dataset, InputError, Storage
from alignshared.schema import LEVEL_COLUMN, require_columns, score_column
from aligntrain.captioning.output import (
    begin,
    finish,
    finished_dataset,
    locked,
)
from aligntrain.captioning.shards import Captioner, ShardCaptioning
from aligntrain.evaluate.store import fingerprint, versions
from aligntrain.inference.load import load_for_inference, model_folder
from aligntrain.inference.steering import check_guidance
from aligntrain.prompts.placeholders import IMAGE_MARK
from aligntrain.prompts.templates import CAPTION_PROMPT

_MAX_TURNS = 2
"""A scored pair of LLaVA's JSON keeps its request and its caption as a conversation."""


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """Settings of `caption_dataset`.

    `level` is forced, by default the top one. `prompt` is for a fine-tuned model, by default
    CAPTION_PROMPT; for `guidance` see `generate_answers`. `batch_size` and `console`, for progress,
    change no caption in float32.
    """

    level: int | None = None
    prompt: str | None = None
    max_new_tokens: int = 64
    batch_size: int = 8
    guidance: float = 1.0
    console: Console | None = None


@dataclass(frozen=True, slots=True)
class Captions:
    """The written dataset; `before` if an earlier run had finished it and nothing was done."""

    dataset: Dataset
    before: bool

    @property
    def level(self) -> int:
        """The forced level."""
        return self.dataset.manifest.config["level"]

    @property
    def images(self) -> int:
        """Number of distinct images that the model answered."""
        return self.dataset.manifest.config["execution"]["images"]

    @property
    def cut_off(self) -> int:
        """Number of answers that reached the limit of tokens."""
        return self.dataset.manifest.config["execution"]["cut_off"]


def caption_dataset(
    model: str | Path,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: CaptionSettings | None = None,
    *,
    device: str | None = None,
) -> Captions:
    """Write `data` to `output` with captions by `model`, a run's folder or its own.

    `caption` is the model's, on one line. The present caption and its score, level, truncation and
    text embedding are kept in columns that end in `_original`; `conversations` becomes null; all
    other columns stay. Images that cannot be read and empty answers become rejects. An unfinished
    run is resumed shard by shard; a finished `output` of the same settings is left as it is.

    Raises:
        InputError: the model has no levels or not this one, the dataset holds no images, no
            captions or captions of a model, a number is out of range, or `output` holds something
            else.
        AlignError: another run is writing to `output`.
    """
    settings = settings or CaptionSettings()
    config = _config(model, settings)
    dataset, storage = Dataset(data), Storage(output)
    config["dataset"] = dataset.digest
    if done := finished_dataset(storage, config):
        return Captions(done, before=True)
    kept = _kept_columns(dataset)
    _check_rows(dataset)
    with locked(storage):
        if done := finished_dataset(storage, config):  # by another run, just now
            return Captions(done, before=True)
        loaded = load_for_inference(model, device=device)
        captioner = Captioner(*loaded, config, settings.batch_size)
        config["precision"] = captioner.precision
        records = begin(storage, config)
        began = time.monotonic()
        captioning = ShardCaptioning(dataset, storage, kept, captioner)
        records = captioning.write(records, settings.console)
        execution = {
            "model": os.fspath(Path(model).absolute()),
            "batch_size": settings.batch_size,
            "images": sum(len(record.answers) for record in records),
            "cut_off": sum(record.cut_off for record in records),
            "seconds": round(time.monotonic() - began, 2),
            "versions": versions(),
        }
        return Captions(finish(storage, dataset, config, execution, records), before=False)


def _config(model: str | Path, settings: CaptionSettings) -> dict[str, Any]:
    """Return what determines the captions of `model`, from its configuration alone.

    Raises:
        InputError: the model cannot caption with `settings`.
    """
    for name in ("max_new_tokens", "batch_size"):
        if (value := getattr(settings, name)) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1 (got {value}).")
    check_guidance(settings.guidance)
    folder = model_folder(model)
    try:
        saved = json.loads((folder / "config.json").read_bytes())
        levels, mixing = int(saved["levels"]), saved["mixing"]
        template = json.loads((folder / "processor_config.json").read_bytes())["template"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds a model that names no levels or no template; give one that "
            "`aligntrain run` or `aligntrain convert` wrote."
        ) from error
    if mixing == "none":
        raise InputError(
            f"{model} has mixing none and no levels to caption at; give a model of another mixing."
        )
    level = levels if settings.level is None else settings.level
    if not 1 <= level <= levels:
        raise InputError(f"--level {level} is not one of {model}; give one from 1 to {levels}.")
    return {
        "model": fingerprint(folder),
        "level": level,
        "prompt": _prompt(model, settings.prompt, template),
        "max_new_tokens": settings.max_new_tokens,
        "guidance": settings.guidance,
    }


def _prompt(model: str | Path, prompt: str | None, template: str) -> str | None:
    """Return the prompt, None for a model that is only pretrained and reads none."""
    if template == "plain":
        if prompt is not None:
            raise InputError(
                f"{model} is only pretrained and captions without a prompt; leave --prompt out."
            )
        return None
    prompt = CAPTION_PROMPT if prompt is None else prompt
    if not prompt.strip() or IMAGE_MARK in prompt:
        raise InputError(
            f"--prompt must say something, without the mark {IMAGE_MARK}, which comes with the "
            f"image (got {prompt!r})."
        )
    return prompt


def _kept_columns(dataset: Dataset) -> dict[str, str]:
    """Return the new names of the columns that describe the present captions, by name.

    Raises:
        InputError: there is no image or caption, or a name is taken.
    """
    if not dataset.manifest.rows:
        raise InputError(f"{dataset.location} is empty, so there is nothing to caption.")
    names = dataset.schema.names
    if "image" not in names:
        raise InputError(_no_images(dataset))
    require_columns(dataset.schema, ("id", "image", "caption"), dataset.location)
    scores = ["score", *map(score_column, dataset.manifest.models or ())]
    about = ("caption", *scores, "caption_truncated", "text_embedding", LEVEL_COLUMN)
    kept = {name: f"{name}_original" for name in about if name in names}
    if taken := [name for name in kept.values() if name in names]:
        raise InputError(
            f"{dataset.location} has a column {taken[0]} already, where the present values would "
            "be kept; give the dataset from before it was captioned, or rename that column."
        )
    return kept


def _check_rows(dataset: Dataset) -> None:
    """Read the small columns of `dataset`; raise InputError unless they are pairs with images."""
    names, images = dataset.schema.names, 0
    conversations = [name for name in ("conversations",) if name in names]
    most = _MAX_TURNS if "score" in names else 0
    for batch in dataset.batches(["id", "image.path", *conversations]):
        images += len(batch) - batch.column("image").null_count
        for name in conversations:
            turns = pc.call_function("list_value_length", [batch.column(name)]).fill_null(0)
            longer = np.flatnonzero(turns.to_numpy(zero_copy_only=False) > most)
            if len(longer):
                raise InputError(
                    f"{dataset.location} holds instruction data ({batch['id'][int(longer[0])]} is "
                    "a conversation) and no captions; give pairs that aligncurate score wrote."
                )
    if not images:
        raise InputError(_no_images(dataset))


def _no_images(dataset: Dataset) -> str:
    return f"{dataset.location} has no images to caption; give image-text pairs."
