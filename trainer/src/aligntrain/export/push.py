"""`aligntrain push`: a finished run, or a model folder, to the Hugging Face Hub."""

from pathlib import Path

from alignshared import InputError
from alignshared.hub import Destination, Pushed, model_files, upload
from aligntrain.inference.load import Base, is_lora, model_folder
from aligntrain.runs.card import run_of
from aligntrain.runs.folder import result_of

_REPLACES = ("*.safetensors", "*.safetensors.index.json", "lora/*", "base.json", "*.jinja")
"""Files of an earlier upload that would change what a newer one is."""


def push(model: str | Path, destination: Destination, *, dry_run: bool = False) -> Pushed:
    """Upload `model`, a finished run or a model folder, to the Hub.

    What is uploaded are the weights, configuration, processor and card; `aligntrain chat
    OWNER/NAME`, and every command that takes a model, loads them back. Of a LoRA run they are what
    LoRA has learned, if its base is a model that others have. A `dry_run` checks everything and
    uploads nothing.

    Raises:
        InputError: there is no finished model, its files or base are of this machine alone, or the
            repository cannot be used (see `Destination`).
        AlignError: the upload failed.
    """
    folder = _finished(Path(model))
    if is_lora(folder):
        Base.read(folder).check_public(folder)
    return upload(folder, model_files(folder), destination, replaces=_REPLACES, dry_run=dry_run)


def _finished(model: Path) -> Path:
    """Return the model's folder in `model`; InputError if none, or if its run is not finished."""
    if not model.is_dir():
        raise InputError(f"{model} is no folder here; give a finished run or a model folder.")
    run = run_of(model)
    if run is not None and result_of(run) is None:
        raise InputError(f"{run} is not a finished run; finish it with --resume, then push it.")
    return model_folder(model)
