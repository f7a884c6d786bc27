"""`aligntrain export`: a trained model in a format that other programs read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from alignshared import InputError, atomic
from aligntrain.inference.load import is_lora, load_model, model_folder
from aligntrain.runs.card import run_of, write_card

Format = Literal["llava", "llm"]

_LLM_USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)"""

_NOT_HERE = {
    "gguf": "no maintained package on PyPI writes GGUF from a model folder: export --format llm, "
    "and give that to convert_hf_to_gguf.py of llama.cpp",
    "onnx": "the exporter of optimum needs transformers 4, and this is transformers 5: export "
    "--format llm, and convert that in an environment of its own",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """Folder, format and parameters of an exported model."""

    output: Path
    format: Format
    parameters: int


def export_model(model: str | Path, output: str | Path, format: str) -> Exported:
    """Write the model of `model`, a run or a model folder, to `output` in `format`, with a card.

    `llava`: transformers' `LlavaForConditionalGeneration` and `LlavaProcessor`; for mixing `none`.
    `llm`: the language model alone with its tokenizer, as any causal LM. LoRA is merged.
    Works on the CPU and holds the model in memory.

    Raises:
        InputError: there is no such model, it does not fit the format, or `output` is not empty.
    """
    if format not in get_args(Format):
        reason = _NOT_HERE.get(format, f"there are {' and '.join(get_args(Format))}")
        raise InputError(f"--format {format} cannot be written: {reason}.")
    folder, output = model_folder(model), Path(output)
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"{output} exists already; give another output.")
    trained, processor = load_model(folder)
    write = _llava if format == "llava" else _llm
    if format == "llava":
        from aligntrain.export.llava import check_llava

        check_llava(trained, folder)
    if is_lora(folder):
        from aligntrain.model.lora import merge_lora

        merge_lora(trained)
    with atomic.folder(output) as unfinished:
        parameters = write(trained, processor, unfinished, run_of(model))
    return Exported(output, "llava" if format == "llava" else "llm", parameters)


def _llava(model: Any, processor: Any, folder: Path, run: Path | None) -> int:
    from aligntrain.export.llava import USE, to_llava

    llava, llava_processor = to_llava(model, processor)
    llava.save_pretrained(folder)
    llava_processor.save_pretrained(folder)
    write_card(
        folder,
        run,
        kind="A LLaVA of transformers: it needs no other package.",
        use=USE.replace("FOLDER", '"."'),
        notes="Its vocabulary has one token more than the LLM's own, the image placeholder; "
        "`generation_config.json` keeps it from being written.",
    )
    return llava.num_parameters()


def _llm(model: Any, processor: Any, folder: Path, run: Path | None) -> int:
    llm, tokenizer = model.model.language_model, processor.tokenizer
    # End tokens and chat template are those of the whole model.
    llm.generation_config = model.generation_config
    if processor.template != "plain":  # in which a question has no place
        tokenizer.chat_template = processor.chat_template
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(
        folder,
        run,
        kind="The language model alone, after training with images.",
        use=_LLM_USE.replace("FOLDER", '"."'),
        notes="It reads text only: vision tower, projector and alignment vectors are not here.",
        task="text-generation",
    )
    return llm.num_parameters()
