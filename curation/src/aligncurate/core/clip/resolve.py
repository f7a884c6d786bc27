"""CLIPs from the values of --model and --weights, or from a manifest, with the same weights."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

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
    folder = demo.clip_path() if name == "demo" else Path(name.removeprefix("local-dir:"))
    is_hub = name.startswith("hf-hub:")
    if not is_hub and (not folder.is_dir() or _is_known(name)):
        return _from_architecture(name, weights or DEFAULT_TAG)
    if weights is not None:
        raise InputError(
            f"--weights {weights} cannot go with --model {name}, which brings its own weights; "
            "leave one of them out."
        )
    config_path, path = _hub_files(name) if is_hub else _folder_files(folder.absolute())
    open_clip_name = name if is_hub else f"local-dir:{folder.absolute()}"
    model, preprocess = _read_config(config_path)
    quick_gelu = bool(model.get("quick_gelu", False))
    return _resolved(name, path.name, open_clip_name, path, model, preprocess, quick_gelu)


def _from_architecture(name: str, weights: str) -> ResolvedClip:
    config: dict[str, Any] | None = open_clip.get_model_config(name) if _is_known(name) else None
    if config is None:
        known = open_clip.list_models()
        near = get_close_matches(name, known, n=4, cutoff=0.3) or known[:4]
        raise InputError(
            f"--model {name} is no open_clip architecture, no folder and no hf-hub: name; "
            f"architectures near it: {', '.join(near)}."
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


def _folder_files(folder: Path) -> tuple[Path, Path]:
    """Return the configuration and the weights of a model in `folder`."""
    config_path = folder / _CONFIG_FILE
    if not config_path.is_file():
        raise InputError(f"{folder} holds no {_CONFIG_FILE}; name a folder that open_clip saved.")
    paths = [folder / file for file in _WEIGHTS_FILES if (folder / file).is_file()]
    if not paths:
        raise InputError(f"{folder} holds no weights; put {_WEIGHTS_FILES[0]} there.")
    return config_path, paths[0]


def _hub_files(name: str) -> tuple[Path, Path]:
    """Return the configuration and the weights of a model of the Hub."""
    repo = name.removeprefix("hf-hub:")
    try:
        return hub_file(repo, [_CONFIG_FILE]), hub_file(repo, _WEIGHTS_FILES)
    except HubError as error:
        raise InputError(
            f"{name} is not in the Hugging Face cache and cannot be downloaded ({error}); download "
            f"{repo} elsewhere and give the folder that holds its {_CONFIG_FILE} as --model."
        ) from error


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
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return ResolvedClip(
        name=name,
        weights=weights,
        open_clip_name=open_clip_name,
        weights_path=str(path),
        weights_sha256=digest,
        quick_gelu=quick_gelu,
        image_size=size if isinstance(size, int) else size[0],
        embedding_dim=config["embed_dim"],
        preprocess=preprocess | {"size": size},
    )


def _tagged_weights(name: str, tag: str, config: dict[str, Any]) -> Path:
    laid = [WEIGHTS_CACHE.expanduser() / name / f"{tag}{end}" for end in (".safetensors", ".pt")]
    for path in laid:
        if path.is_file():
            return path
    repo, _, file = str(config.get("hf_hub", "")).rpartition("/")
    try:
        if repo:  # in it, a safetensors version of the file comes first
            safe = [_WEIGHTS_FILES[0], f"{Path(file).stem}.safetensors", file]
            return hub_file(repo, list(dict.fromkeys(safe)) if file else _WEIGHTS_FILES)
        return Path(pretrained.download_pretrained_from_url(config["url"]))
    except (HubError, OSError) as error:
        raise InputError(
            f"the weights {tag} of {name} are not in the Hugging Face cache and cannot be "
            f"downloaded ({error}); download the weights file of {repo or config['url']} elsewhere "
            f"and place it as {laid[0]}."
        ) from error


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


def resolve_recorded(info: ModelInfo, lies_at: str | None = None) -> ResolvedClip:
    """Resolve the model of `info`, with its weights file or model folder at `lies_at` if given.

    Raises:
        InputError: the model is missing or has other weights.
    """
    resolved = _found(info, lies_at)
    if resolved.weights_sha256 != info.weights_sha256:
        raise InputError(
            f"{resolved.weights_path} is not what the embeddings were made with: its SHA-256 "
            f"begins with {resolved.weights_sha256[:12]}, that of {info.name} in the manifest "
            f"with {info.weights_sha256[:12]}; name the right weights with --weights."
        )
    view = next((known for known in get_args(View) if known == info.view), None)
    return replace(resolved, name=info.name, weights=info.weights).with_view(view)


def _found(info: ModelInfo, lies_at: str | None) -> ResolvedClip:
    if not _is_known(info.name):
        return _own_weights(info, lies_at)
    if lies_at is None:
        is_tag = bool(open_clip.get_pretrained_cfg(info.name, info.weights))
        if not is_tag and not Path(info.weights).is_file():
            raise InputError(
                f"the weights of {info.name}, {info.weights}, are not there any more; name where "
                "they lie with --weights."
            )
        return resolve_clip(info.name, info.weights)
    if not Path(lies_at).is_file():
        raise InputError(f"--weights {lies_at} is no file; name the weights of {info.name}.")
    resolved = resolve_clip(info.name, lies_at)
    tag = open_clip.get_pretrained_cfg(info.name, info.weights)
    if not tag:
        return resolved
    # A file does not say how it was trained; its recorded tag does.
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), tag)
    return replace(
        resolved,
        quick_gelu=bool(tag.get("quick_gelu", False)),
        preprocess=preprocess | {"size": resolved.preprocess["size"]},
    )


def _own_weights(info: ModelInfo, lies_at: str | None) -> ResolvedClip:
    """Resolve the demo, a folder or a Hub model, which bring their own weights."""
    if lies_at is not None:
        if not Path(lies_at).is_dir():
            raise InputError(
                f"--weights {lies_at} is no folder; name the one that holds {info.name}."
            )
        return resolve_clip(str(Path(lies_at).absolute()))
    is_folder = info.name != "demo" and not info.name.startswith("hf-hub:")
    if is_folder and not Path(info.name.removeprefix("local-dir:")).is_dir():
        raise InputError(
            f"the model {info.name} is not there any more; name the folder where it lies with "
            "--weights."
        )
    return resolve_clip(info.name)
