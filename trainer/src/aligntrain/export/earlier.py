# transformers types its classes for its own use.
# pyright: reportArgumentType=false
"""Models of earlier versions, whose placeholders were no tokens of the tokenizer."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignshared import InputError, atomic
from alignshared.errors import one_line
from aligntrain.inference.load import is_lora, model_folder
from aligntrain.runs.folder import EXPORT

if TYPE_CHECKING:
    import torch

    from aligntrain.model import AlignGPTConfig, AlignGPTProcessor

_CONFIG = "config.json"
_PROCESSOR = "processor_config.json"


def earlier_model(source: Path) -> Path | None:
    """Return the model's folder in `source`, a run's or its own, if an earlier version wrote it."""
    if not any((folder / _CONFIG).is_file() for folder in (source, source / EXPORT)):
        return None
    folder = model_folder(source)
    described = json.loads((folder / _CONFIG).read_bytes())
    is_ours = described.get("model_type") == "aligngpt" and "align_token_id" in described
    return folder if is_ours and "llm_vocab_size" not in described else None


def convert_earlier(folder: Path, output: Path) -> "AlignGPTConfig":
    """Write the model in `folder` with placeholders in its vocabulary to `output`.

    What it answers stays, and files beside the model are copied. Works on the CPU and holds the
    model in memory.

    Raises:
        InputError: it cannot be read.
    """
    from aligntrain.model import AlignGPTConfig

    try:
        described = json.loads((folder / _CONFIG).read_bytes())
        for name in ("image_token_id", "align_token_id"):
            described.pop(name, None)
        processor = _processor(folder, AlignGPTConfig.from_dict(dict(described)))
        config = AlignGPTConfig.from_dict(described | {"image_token_id": processor.image_token_id})
        with atomic.folder(output) as unfinished:
            shutil.copytree(
                folder, unfinished, dirs_exist_ok=True, ignore=_of_the_model(is_lora(folder))
            )
            if is_lora(folder):
                config.save_pretrained(unfinished)
            else:
                _write_whole(folder, unfinished, config)
            processor.save_pretrained(unfinished)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the model in {folder} cannot be read: {one_line(error, 200)}; give a folder that "
            "`aligntrain run` wrote."
        ) from error
    return config


def _of_the_model(lora: bool) -> Any:
    """Return what is not copied: files that are written anew."""
    weights = () if lora else ("model*.safetensors", "model.safetensors.index.json")
    return shutil.ignore_patterns(_CONFIG, _PROCESSOR, "tokenizer*", "*.jinja", *weights)


def _processor(folder: Path, config: "AlignGPTConfig") -> "AlignGPTProcessor":
    """Return the processor in `folder` with placeholders in its tokenizer."""
    from transformers import AutoImageProcessor, AutoTokenizer

    from aligntrain.model import AlignGPTProcessor

    settings = json.loads((folder / _PROCESSOR).read_bytes())
    template = folder / "chat_template.jinja"
    return AlignGPTProcessor(
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=False),
        AutoTokenizer.from_pretrained(folder, config=config.text_config, trust_remote_code=False),
        image_tokens=config.image_tokens,
        llm_vocab_size=config.llm_vocab_size,
        levels=config.levels,
        align=config.has_table,
        aspect=settings["aspect"],
        template=settings["template"],
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
    )


def _write_whole(folder: Path, output: Path, config: "AlignGPTConfig") -> None:
    """Write the whole model in `folder` to `output`, with zeros as the new rows of its tables."""
    import torch
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    from aligntrain.model import AlignGPTForConditionalGeneration

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(file)
    with torch.device("meta"):
        shapes = {
            name: value.shape
            for name, value in AlignGPTForConditionalGeneration(config).state_dict().items()
        }
    state = {name: _padded(value, shapes.get(name, value.shape)) for name, value in weights.items()}
    model = AlignGPTForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=config.dtype
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.save_pretrained(output)


def _padded(value: "torch.Tensor", shape: "torch.Size") -> "torch.Tensor":
    """Return `value`, a table or bias of the vocabulary, with as many rows as in `shape`."""
    import torch

    missing = shape[0] - value.shape[0] if shape else 0
    return value if missing <= 0 else torch.cat([value, value.new_zeros(missing, *shape[1:])])
