"""Checkpoints that resume a run exactly where it stopped.

    checkpoints/step-00000100/complete.json                step, position in the data, model, recipe
    checkpoints/step-00000100/rank-00000-000.safetensors   whole float32 value and both moments of
                                                           each trained parameter

Every rank writes a share of the parameters. Tensors are stored whole, so a run may resume with
another number of ranks or ZeRO stage. Frozen parameters are not saved but reloaded from their
source. Random numbers are derived from the seed in every step and need no state. A folder is
written under a temporary name, its marker `complete.json` last, with the size of every file, and
then renamed: a folder with another name, without its marker or with a short file is not a
checkpoint. Only JSON and safetensors are read, which cannot run code. With several machines the run
folder must be on shared storage.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from alignshared import AlignError, InputError, atomic
from aligntrain.recipes.schema import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from aligntrain.model.configuration import AlignGPTConfig
    from aligntrain.train.deepspeed_engine import MasterState

FOLDER = "checkpoints"
MARKER = "complete.json"
FORMAT = 2

_FREE_KEYS = (
    "name",
    "batch.logits_mb",
    "batch.micro_size",
    "batch.packing",
    "compile",
    "data.feature_cache_mb",
    "data.verify",
    "data.workers",
    "gradient_checkpointing",
    "offload",
    "zero_stage",
)
_FREE_SECTIONS = ("checkpoint.", "log.")
"""Recipe keys and sections that may change on resuming: they affect training only by rounding."""

_OTHER_MODEL = "resume with the model that it was made with, or start a new run."
_LARGEST_FILE = 2 << 30
_OLD = ".old-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Complete checkpoint; `meta` is the content of its marker."""

    folder: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of steps made by the run."""
        return int(self.meta["step"])


def checkpoints(run: Path) -> list[Checkpoint]:
    """Return the complete checkpoints of the run in the folder `run`, oldest first."""
    candidates = [_read(folder) for folder in (run / FOLDER).glob("step-*")]
    return sorted((c for c in candidates if c is not None), key=lambda c: c.step)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of the run in the folder `run`, or None."""
    return (checkpoints(run) or [None])[-1]


def _read(folder: Path) -> Checkpoint | None:
    try:
        meta = json.loads((folder / MARKER).read_bytes())
        sizes = meta["files"]
        whole = all((folder / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Checkpoint(folder, meta) if whole else None


def model_identity(config: "AlignGPTConfig") -> dict[str, Any]:
    """Return the parts of a model's configuration that must equal a checkpoint's."""
    text, vision = config.get_text_config(), config.vision_config
    return {
        "llm": f"{text.model_type} with {text.num_hidden_layers} layers of {text.hidden_size}",
        "vision tower": f"{vision.model_type} with {vision.num_hidden_layers} layers of "
        f"{vision.hidden_size}",
        "vocabulary": int(config.llm_vocab_size),
        "levels": int(config.levels),
        "image tokens": int(config.image_tokens),
        "vision_scales": config.scales,
        "vision_pixel_shuffle": config.vision_pixel_shuffle
        if config.vision_pixel_shuffle > 1
        else None,
        "mixing": str(config.mixing),
    }


def recipe_differences(saved: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return the keys, except the free ones, that differ between `recipe` and `saved` settings.

    Each as `key: value there, value here`.
    """
    old, new = _leaves(saved), _leaves(recipe.settings)
    return [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in sorted(old.keys() | new.keys())
        if key not in _FREE_KEYS and not key.startswith(_FREE_SECTIONS)
        if old.get(key) != new.get(key)
    ]


def check_fits(checkpoint: Checkpoint, model: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise InputError unless `checkpoint` matches this model (see `model_identity`) and recipe."""
    where, meta = checkpoint.folder, checkpoint.meta
    if meta.get("format") != FORMAT:
        raise InputError(
            f"{where} has the format {meta.get('format')} and this version reads {FORMAT}; go on "
            "with the version that wrote it, or start a new run."
        )
    check_model(where, meta["model"], model, f"here it is {{}}; {_OTHER_MODEL}")
    differences = recipe_differences(_completed(meta["recipe"]), recipe)
    if differences:
        raise InputError(
            f"{where} was made with another recipe ({'; '.join(differences)}); resume with that "
            "one, or start a new run with another --output."
        )


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the settings `saved` by this version or an older one, which lacks the newer keys.

    A key's default is what versions did that had no such key.
    """
    try:
        return Recipe.model_validate(saved).settings
    except ValidationError:
        return saved


def check_model(
    where: object, saved: Mapping[str, Any], wanted: Mapping[str, Any], rest: str
) -> None:
    """Raise InputError unless the `model_identity` of what lies at `where` is the `wanted` one.

    `rest` ends the message; its {} takes the wanted value.
    """
    for what, value in wanted.items():
        if saved.get(what) != value:
            raise InputError(
                f"{where} is of another model: its {what} is {saved.get(what)} and "
                + rest.format(value)
            )


def save_checkpoint(run: Path, state: "MasterState", meta: Mapping[str, Any], *, keep: int) -> None:
    """Write a checkpoint of the run in the folder `run` and remove all but the newest `keep`.

    All ranks call it. `meta` has the `step` and goes into the marker, as JSON.

    Raises:
        AlignError: it cannot be written.
    """
    import torch.distributed as ranks

    final = run / FOLDER / f"step-{meta['step']:08d}"
    unfinished = atomic.temporary_name(final)
    first = ranks.get_rank() == 0
    try:
        if first:
            clear_unfinished(run)
            unfinished.mkdir(parents=True)
        ranks.barrier()
        parts: list[Any] = [None] * ranks.get_world_size()
        ranks.all_gather_object(parts, _write_share(unfinished, state))
        if first:
            files = {file: size for part in parts for file, size in part.items()}
            marker = {
                **meta,
                "format": FORMAT,
                "ranks": len(parts),
                "optimizer_steps": state.steps,
                "scaler": state.scaler(),
                "files": files,
            }
            atomic.write(unfinished / MARKER, json.dumps(marker, indent=2))
            _remove([final])
            os.rename(unfinished, final)
            atomic.flush(final.parent)
            _remove(checkpoint.folder for checkpoint in checkpoints(run)[:-keep])
        ranks.barrier()
    except OSError as error:
        raise AlignError(
            f"{final} cannot be written ({error.strerror or error}); make room there, and where "
            "there are several machines put the run folder on storage that they share."
        ) from error


def clear_unfinished(run: Path) -> None:
    """Remove unfinished folders of killed processes; no process may be writing."""
    for folder in (run / FOLDER).glob(".*"):
        if folder.name.startswith((atomic.UNFINISHED, _OLD)):
            shutil.rmtree(folder, ignore_errors=True)


def load_weights(checkpoint: Checkpoint, model: "nn.Module") -> None:
    """Load the trainable parameters of `model`, before the engine is built.

    Raises:
        InputError: the checkpoint is damaged or of another model.
    """
    import torch

    tensors = _Tensors(checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors.get(f"master/{name}", parameter.shape))


def load_state(checkpoint: Checkpoint, state: "MasterState") -> None:
    """Load the optimizer's float32 values and moments, for any number of ranks and any stage.

    Raises:
        InputError: the checkpoint is damaged or of another model.
    """
    from aligntrain.train.deepspeed_engine import STATES

    tensors = _Tensors(checkpoint)
    state.begin(int(checkpoint.meta["optimizer_steps"]))
    for name, parameter in state.parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        for kind in STATES:
            state.set(parameter, kind, tensors.get(f"{kind}/{name}", shape))
    state.set_scaler(checkpoint.meta["scaler"])


class _Tensors:
    """Tensors of a checkpoint by name, read one at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        from safetensors import SafetensorError, safe_open

        self._folder = checkpoint.folder
        self._files: dict[str, Any] = {}
        for file in checkpoint.meta["files"]:
            try:
                opened: Any = safe_open(self._folder / file, framework="pt")
            except SafetensorError as error:
                raise InputError(
                    f"{self._folder / file} is damaged ({error}); remove {self._folder} to go on "
                    "from the checkpoint before it."
                ) from error
            self._files |= dict.fromkeys(opened.keys(), opened)

    def get(self, name: str, shape: "torch.Size") -> "torch.Tensor":
        if name not in self._files:
            raise InputError(
                f"{self._folder} has no {name}: it is of another model; {_OTHER_MODEL}"
            )
        tensor = self._files[name].get_tensor(name)
        if tensor.shape != shape:
            raise InputError(
                f"{name} in {self._folder} has the shape {list(tensor.shape)} and here it is "
                f"{list(shape)}; {_OTHER_MODEL}"
            )
        return tensor


def _write_share(folder: Path, state: "MasterState") -> dict[str, int]:
    """Gather every parameter and write this rank's share; return the sizes of its files."""
    import torch.distributed as ranks

    from aligntrain.train.deepspeed_engine import STATES

    rank, count = ranks.get_rank(), ranks.get_world_size()
    files: dict[str, int] = {}
    waiting: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if waiting:
            file = f"rank-{rank:05d}-{len(files):03d}.safetensors"
            files[file] = _write_tensors(folder / file, waiting)
            waiting.clear()

    for number, (name, parameter) in enumerate(state.parameters()):
        for kind in STATES:
            whole = state.get(parameter, kind)  # collective: all ranks call it
            if number % count == rank:
                waiting[f"{kind}/{name}"] = whole.to("cpu", copy=True).contiguous()
        if sum(tensor.nbytes for tensor in waiting.values()) >= _LARGEST_FILE:
            flush()
    flush()
    return files


def _write_tensors(path: Path, tensors: "dict[str, torch.Tensor]") -> int:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    atomic.flush(path)
    return path.stat().st_size


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        if folder.exists():
            # Rename first: an incomplete folder never has a checkpoint's name.
            old = folder.with_name(_OLD + folder.name)
            os.rename(folder, old)
            shutil.rmtree(old, ignore_errors=True)


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
