"""Architecture, weights and activation from the values of --model and --weights."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip import pretrained
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from aligncurate.core.clip.view import preprocess_of_view
from aligncurate.core.hub import HubError, hub_file
from aligncurate.settings import Precision, View
from alignshared import InputError, ModelInfo, demo

DEFAULT_TAG = "openai"
WEIGHTS_CACHE = Path("~/.cache/alignstack/weights")
"""Folder for manually placed weights: `<model>/<tag>.safetensors` (or `.pt`)."""

_CONFIG_FILE = "open_clip_config.json"
_WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True, slots=True)
class ResolvedClip:
    """A CLIP whose weights are on this machine; holds no tensors and can be sent to workers.

    `open_clip_name` is the argument of open_clip's factory; `preprocess` its image preprocessing
    configuration; `image_size` the pixels per side; `embedding_dim` the width of the joint
    space; `view` the framing, if not the model's own.
    """

    name: str
    weights: str
    open_clip_name: str
    weights_path: str
    weights_sha256: str
    quick_gelu: bool
    image_size: int
    embedding_dim: int
    preprocess: dict[str, Any]
    view: View | None = None

    def with_view(self, view: View | None) -> "ResolvedClip":
        """Return the model with images framed as `view`; None changes nothing."""
        if view is None:
            return self
        return replace(self, preprocess=preprocess_of_view(self.preprocess, view), view=view)

    def info(
        self, precision: Precision, *, long_captions: str | None = None, decode: str | None = None
    ) -> ModelInfo:
        """Model and settings for the manifest."""
        return ModelInfo(
            name=self.name,
            weights=self.weights,
            weights_sha256=self.weights_sha256,
            image_size=self.image_size,
            precision=precision,
            view=self.view,
            long_captions=long_captions,
            decode=decode,
        )


def resolve_clip(name: str, weights: str | None = None) -> ResolvedClip:
    """Find the model `name` with `weights`, downloading them if possible.

    `name` is `demo` (shipped), an open_clip architecture, `hf-hub:org/repo`, or a folder with an
    open_clip configuration and weights. `weights` is a pretrained tag or a weights file
    (safetensors, or a PyTorch file that loads without running code), for architectures only.

    Raises:
        InputError: no such model or tag, or the weights are neither here nor downloadable.
    """
    if name == "demo":
        return _from_folder("demo", demo.clip_path(), weights)
    if name.startswith("hf-hub:"):
        return _from_hub(name, weights)
    folder = Path(name.removeprefix("local-dir:"))
    if folder.is_dir() and not _is_known(name):
        return _from_folder(name, folder.absolute(), weights)
    return _from_architecture(name, weights or DEFAULT_TAG)


def _from_architecture(name: str, weights: str) -> ResolvedClip:
    config: dict[str, Any] | None = open_clip.get_model_config(name) if _is_known(name) else None
    if config is None:
        raise InputError(
            f"--model {name} is no open_clip architecture, no folder and no hf-hub: name; "
            f"architectures near it: {_nearest(name, open_clip.list_models())}."
        )
    tag = open_clip.get_pretrained_cfg(name, weights)
    if tag:
        path, quick_gelu = _tagged_weights(name, weights, tag), bool(tag.get("quick_gelu", False))
        if config.get("quick_gelu", False) and not quick_gelu:
            raise InputError(
                f"weights {weights} of {name} were not trained with QuickGELU, which this "
                f"architecture has; name {name.removesuffix('-quickgelu')} instead."
            )
    elif Path(weights).is_file():
        path, quick_gelu = Path(weights).absolute(), bool(config.get("quick_gelu", False))
    else:
        raise InputError(
            f"--weights {weights} is neither a file nor a tag of {name}; its tags are "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'none'}."
        )
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), tag or {})
    return _resolved(name, weights, name, path, config, preprocess, quick_gelu)


def _from_folder(name: str, folder: Path, weights: str | None) -> ResolvedClip:
    _refuse_weights(name, weights)
    config_path = folder / _CONFIG_FILE
    if not config_path.is_file():
        raise InputError(f"{folder} holds no {_CONFIG_FILE}; name a folder that open_clip saved.")
    paths = [folder / file for file in _WEIGHTS_FILES if (folder / file).is_file()]
    if not paths:
        raise InputError(f"{folder} holds no weights; put {_WEIGHTS_FILES[0]} there.")
    model, preprocess = _read_config(config_path)
    return _resolved(
        name, paths[0].name, f"local-dir:{folder}", paths[0], model, preprocess,
        bool(model.get("quick_gelu", False)),
    )  # fmt: skip


def _from_hub(name: str, weights: str | None) -> ResolvedClip:
    _refuse_weights(name, weights)
    repo = name.removeprefix("hf-hub:")
    try:
        config_path = hub_file(repo, [_CONFIG_FILE])
        path = hub_file(repo, _WEIGHTS_FILES)
    except HubError as error:
        raise InputError(
            f"{name} is not in the Hugging Face cache and cannot be downloaded ({error}); download "
            f"{repo} elsewhere and give the folder that holds its {_CONFIG_FILE} as --model."
        ) from error
    model, preprocess = _read_config(config_path)
    return _resolved(
        name, path.name, name, path, model, preprocess, bool(model.get("quick_gelu", False))
    )


def _resolved(
    name: str,
    weights: str,
    open_clip_name: str,
    path: Path,
    config: dict[str, Any],
    preprocess: dict[str, Any],
    quick_gelu: bool,
) -> ResolvedClip:
    size = config["vision_cfg"].get("image_size", 224)
    return ResolvedClip(
        name=name,
        weights=weights,
        open_clip_name=open_clip_name,
        weights_path=str(path),
        weights_sha256=_sha256(path),
        quick_gelu=quick_gelu,
        image_size=size if isinstance(size, int) else size[0],
        embedding_dim=config["embed_dim"],
        preprocess=preprocess | {"size": size},
    )


def _refuse_weights(name: str, weights: str | None) -> None:
    if weights is not None:
        raise InputError(
            f"--weights {weights} cannot go with --model {name}, which brings its own weights; "
            "leave one of them out."
        )


def _tagged_weights(name: str, tag: str, config: dict[str, Any]) -> Path:
    laid = [WEIGHTS_CACHE.expanduser() / name / f"{tag}{end}" for end in (".safetensors", ".pt")]
    for path in laid:
        if path.is_file():
            return path
    repo, _, file = str(config.get("hf_hub", "")).rpartition("/")
    try:
        if repo:
            return hub_file(repo, _with_safe_names(file))
        return Path(pretrained.download_pretrained_from_url(config["url"]))
    except (HubError, OSError) as error:
        raise InputError(
            f"the weights {tag} of {name} are not in the Hugging Face cache and cannot be "
            f"downloaded ({error}); download the weights file of {repo or config['url']} elsewhere "
            f"and place it as {laid[0]}."
        ) from error


def _with_safe_names(file: str) -> list[str]:
    """Return `file`, preceded by the names of its safetensors versions."""
    if not file:
        return list(_WEIGHTS_FILES)
    return list(dict.fromkeys([_WEIGHTS_FILES[0], f"{Path(file).stem}.safetensors", file]))


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        config = json.loads(path.read_text())
        model = config["model_cfg"]
        for part, kind in (("embed_dim", int), ("text_cfg", dict), ("vision_cfg", dict)):
            if not isinstance(model[part], kind):
                raise TypeError(f"{part} is {model[part]!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not an open_clip configuration ({error}); name a folder that open_clip "
            "saved."
        ) from error
    defaults = asdict(PreprocessCfg())
    return model, merge_preprocess_dict(defaults, config.get("preprocess_cfg", {}))


def _is_known(name: str) -> bool:
    return name in open_clip.list_models()


def _nearest(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    return ", ".join(get_close_matches(name, known, n=4, cutoff=0.3)) or ", ".join(known[:4])


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
