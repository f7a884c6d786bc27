"""The CLIP named in a manifest, verified to have the same weights, byte for byte."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import open_clip
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from aligncurate.core.clip.resolve import ResolvedClip, resolve_clip
from aligncurate.settings import View
from alignshared import InputError, ModelInfo


def resolve_recorded(info: ModelInfo, lies_at: str | None = None) -> ResolvedClip:
    """Resolve the model of `info`; `lies_at` overrides the path of its weights file or model
    folder.

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
    if info.name not in open_clip.list_models():
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
    """Whether the model is the demo, a folder or a Hub model, which include weights."""
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
