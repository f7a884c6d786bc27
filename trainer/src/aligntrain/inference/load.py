"""Load a trained model from its run's folder: whole, or assembled from a base and LoRA."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import InputError
from alignshared.demo import MODELS, model_path
from alignshared.errors import one_line
from alignshared.hub import download_model, is_hub_name
from aligntrain.runs.folder import ADAPTER, EXPORT, LORA, RunSpec

if TYPE_CHECKING:
    import torch

    from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor

BASE = "base.json"
"""File in the export of a LoRA run with the location of the base weights."""


@dataclass(frozen=True, slots=True)
class Base:
    """Location of the weights that a LoRA run left unchanged.

    Either the folder `model` of a whole model, or vision tower and LLM, from which `build_model`
    builds it with `choices`.
    """

    vision_tower: str
    llm: str
    model: str | None
    choices: dict[str, Any]

    @classmethod
    def of(cls, spec: RunSpec) -> "Base":
        """Return the base of the run `spec`."""
        names, start = spec.recipe.model, spec.start
        model = None if start is None else start.model
        return cls(_lasting(names.vision_tower), _lasting(names.llm), model, names.choices)

    @property
    def name(self) -> str:
        """Name or folder of the LLM."""
        return self.llm if self.model is None else self.model

    def check_public(self, learned: str | Path) -> None:
        """Raise InputError if others lack the base of the LoRA in `learned`: a folder of ours."""
        for name in (self.vision_tower, self.llm) if self.model is None else (self.model,):
            if Path(name).is_absolute():
                raise InputError(
                    f"{learned} is a LoRA on {name}, which nobody else has; write the Hub's name "
                    f"of it into {BASE} or the recipe, or push what `aligntrain merge` makes of it."
                )

    def write(self, folder: Path) -> None:
        """Write the location to the export `folder`."""
        (folder / BASE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Base":
        """Read the base of the export `folder`; InputError if it is damaged."""
        try:
            return cls(**json.loads((folder / BASE).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{folder / BASE} cannot be read ({error}); it should name vision_tower, llm, "
                "model and choices."
            ) from error


def model_folder(folder: str | Path) -> Path:
    """Return the model's folder in `folder`: a run's, an export or its own; InputError if none.

    `demo` and `demo-smollm2` are models that ship, unless there is one in a folder of that name. A
    name `owner/name`, or `owner/name@revision`, that is no path here is a model of the Hub, which
    is downloaded.
    """
    name = os.fspath(folder)
    if is_hub_name(name):
        return _holding_model(download_model(name), named=f"{name} on the Hub")
    shipped = [model_path(name)] if name in MODELS else []
    return _holding_model(Path(folder), Path(folder) / EXPORT, *shipped, named=name)


def beside_model(model: str | Path, name: str) -> Path:
    """Return the folder `name` in that of `model`, for results; InputError for one of the Hub."""
    if is_hub_name(os.fspath(model)):
        raise InputError(
            f"{model} is a model of the Hub, without a folder here for what is found about it; "
            "name one with --output, and give --against the folder of an evaluation."
        )
    return Path(model) / name


def model_name(model: str | Path, place: Path) -> str:
    """Return the name of `model` in the folder `place`: of the Hub, else its run's or folder's."""
    if is_hub_name(os.fspath(model)):
        return os.fspath(model)
    return (place.parent if place.name == EXPORT else place).name


def _holding_model(*places: Path, named: str) -> Path:
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise InputError(
        f"{named} holds no finished model; give a run's folder in which {EXPORT}/ was written, or "
        "a model's own."
    )


def is_lora(place: Path) -> bool:
    """Return whether the model in `place` (see `model_folder`) is the export of a LoRA run."""
    return (place / LORA).is_dir()


def load_model(
    folder: str | Path, *, dtype: "torch.dtype | str" = "auto", device: str = "cpu"
) -> "tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]":
    """Return model and processor of `folder`: a run's, or one written by `save_pretrained`.

    A LoRA run's model is its base with LoRA beside the LLM's matrices, in 16 or 32 bits even if
    trained in 4. `dtype` "auto" is the saved one.

    Raises:
        InputError: there is no such model, or its base has moved.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    place = model_folder(folder)
    try:
        # First, as it tells a model of an earlier version.
        AutoConfig.from_pretrained(place, trust_remote_code=False)
        # Nothing that a model names is run: transformers would ask on a terminal.
        processor: Any = AutoProcessor.from_pretrained(place, trust_remote_code=False)
        if is_lora(place):
            model: Any = _with_lora(place, dtype)
        else:
            model = AutoModelForImageTextToText.from_pretrained(
                place, dtype=dtype, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        reason = one_line(error, 200)
        raise InputError(
            f"the model in {place} cannot be loaded: {reason}; give the folder of a finished run."
        ) from error
    return model.eval().to(device), processor


def load_for_inference(
    folder: str | Path, *, device: str | None = None
) -> "tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]":
    """Return `load_model` on a GPU in the saved dtype if there is one, else the CPU in float32."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(folder, dtype=torch.float32 if device == "cpu" else "auto", device=device)


def _with_lora(place: Path, dtype: "torch.dtype | str") -> "AlignGPTForConditionalGeneration":
    import torch
    from transformers import AutoConfig

    from aligntrain.model import AlignGPTForConditionalGeneration, build_model
    from aligntrain.model.adapter import load_adapter
    from aligntrain.model.build import KNOWN
    from aligntrain.model.lora import load_lora

    saved = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if dtype == "auto":
        dtype = getattr(torch, str(saved.dtype).removeprefix("torch."))
    base = Base.read(place)
    try:
        if base.model is None:
            choices = {**base.choices, "image_token_id": saved.image_token_id}
            model = build_model(base.vision_tower, base.llm, dtype=dtype, **choices)
        else:
            model = AlignGPTForConditionalGeneration.from_pretrained(base.model, dtype=dtype)
    except (OSError, ValueError, InputError) as error:
        if base.model is None and {base.vision_tower, base.llm} <= KNOWN:
            raise  # it says what to install
        reason = " ".join(str(error).partition(";")[0].split())[:300]
        raise InputError(
            f"{place} holds what a LoRA run has learned, and what it learned on cannot be loaded: "
            f"{reason}; if it has moved, write its new place into {place / BASE}."
        ) from error
    model.config.cooldown = saved.cooldown
    load_adapter(model, place / ADAPTER)
    load_lora(model, place / LORA)
    return model


def _lasting(name: str) -> str:
    """Return `name` as an absolute path if it is a path here, so that it holds from any folder."""
    from aligntrain.model.build import KNOWN

    is_path = name not in KNOWN and Path(name).exists()
    return os.fspath(Path(name).absolute()) if is_path else name
