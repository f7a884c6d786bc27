"""Train the adaptive-alignment multimodal LLM on levelled shards.

Importing this makes transformers' Auto classes know the model: `AutoModelForImageTextToText`,
`AutoProcessor` and `AutoConfig` load what a run wrote.
"""

import typing

from wrapt import when_imported as _when_imported

if typing.TYPE_CHECKING:
    from aligntrain.export.push import push as push
    from aligntrain.inference.load import load_model as load_model
    from aligntrain.model import AlignGPTConfig as AlignGPTConfig
    from aligntrain.model import (
        AlignGPTForConditionalGeneration as AlignGPTForConditionalGeneration,
    )
    from aligntrain.model import AlignGPTProcessor as AlignGPTProcessor
    from aligntrain.model import build_model as build_model
    from aligntrain.model import build_processor as build_processor
    from aligntrain.model.adapter import load_adapter as load_adapter
    from aligntrain.model.adapter import save_adapter as save_adapter

_HOME = {
    "AlignGPTConfig": "model",
    "AlignGPTForConditionalGeneration": "model",
    "AlignGPTProcessor": "model",
    "build_model": "model",
    "build_processor": "model",
    "load_adapter": "model.adapter",
    "load_model": "inference.load",
    "push": "export.push",
    "save_adapter": "model.adapter",
}
__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> typing.Any:
    """Import parts on first use: torch and transformers take seconds, too slow for `--help`."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


@_when_imported("transformers")
def _register(_: typing.Any) -> None:  # pyright: ignore[reportUnusedFunction]
    """Have `aligntrain.model` register itself as soon as there is something to register with.

    Where that module is what imports transformers, it goes on and registers itself at its end.
    """
    from importlib import import_module

    import_module("aligntrain.model")
