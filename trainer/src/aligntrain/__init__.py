"""Train the adaptive-alignment multimodal LLM on levelled shards.

Importing this makes transformers' Auto classes know the model: `AutoModelForImageTextToText`,
`AutoProcessor` and `AutoConfig` load what a run wrote.
"""

import typing

from wrapt import when_imported as _when_imported

if typing.TYPE_CHECKING:
    from aligntrain.inference.load import load_model
    from aligntrain.model import (
        AlignGPTConfig,
        AlignGPTForConditionalGeneration,
        AlignGPTProcessor,
        build_model,
        build_processor,
    )
    from aligntrain.model.adapter import load_adapter, save_adapter

__all__ = [
    "AlignGPTConfig",
    "AlignGPTForConditionalGeneration",
    "AlignGPTProcessor",
    "build_model",
    "build_processor",
    "load_adapter",
    "load_model",
    "save_adapter",
]

_HOME = dict.fromkeys(__all__, "aligntrain.model") | {
    "load_adapter": "aligntrain.model.adapter",
    "load_model": "aligntrain.inference.load",
    "save_adapter": "aligntrain.model.adapter",
}


def __getattr__(name: str) -> typing.Any:
    """Import parts on first use: torch and transformers take seconds, too slow for `--help`."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


@_when_imported("transformers")
def _register(_: typing.Any) -> None:  # pyright: ignore[reportUnusedFunction]
    """Have `aligntrain.model` register itself as soon as there is something to register with.

    Where that module is what imports transformers, it goes on and registers itself at its end.
    """
    from importlib import import_module

    import_module("aligntrain.model")
