"""`aligntrain export` and `aligntrain merge`: a trained model in other formats, or as a whole."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from alignshared import InputError, atomic
from alignshared.stores.filesystems import public_name
from aligntrain.inference.load import is_lora, load_model, model_folder
from aligntrain.prompts.placeholders import without_marks
from aligntrain.runs.card import run_of, write_card
from aligntrain.runs.folder import GATE, GATE_SUMMARY

if TYPE_CHECKING:
    from aligntrain.model.modeling import AlignGPTForConditionalGeneration
    from aligntrain.model.processing import AlignGPTProcessor

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
    """Folder, format and parameters of an exported model.

    `vector` is the name of the one before its images: a level, `mean`, or None. `cost` says what
    fixing it costs against the gate's mix, None where no gate mixed.
    """

    output: Path
    format: Format
    parameters: int
    vector: str | None = None
    cost: str | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """Folder and parameters of a merged model, and how many matrices LoRA changed."""

    output: Path
    parameters: int
    matrices: int


def export_model(
    model: str | Path, output: str | Path, format: str, *, level: str | None = None
) -> Exported:
    """Write the model of `model`, a run or a model folder, to `output` in `format`, with a card.

    `llava`: transformers' `LlavaForConditionalGeneration` and `LlavaProcessor`, with the vector
    `level` before its images: `1` to `N`, `mean` (equal weights), `global` (the top level), or by
    default the mixing's own, which the mixings with a gate do not have. `llm`: the language model
    alone with its tokenizer, as any causal LM. LoRA is merged. Works on the CPU and holds the model
    in memory.

    Raises:
        InputError: there is no such model or level, it does not fit the format, or `output` is not
            empty.
    """
    if format not in get_args(Format):
        reason = _NOT_HERE.get(format, f"there are {' and '.join(get_args(Format))}")
        raise InputError(f"--format {format} cannot be written: {reason}.")
    if format == "llm" and level is not None:
        raise InputError("--level goes with --format llava; the LLM alone reads no images.")
    folder, output = model_folder(model), _free(output)
    trained, processor = load_model(folder)
    vector = cost = None
    if format == "llava":
        from aligntrain.export.llava import check_llava, vector_name

        vector = vector_name(trained.config, level, folder)
        check_llava(trained, folder)
        cost = _cost(Path(model), vector) if trained.config.has_gate and vector else None
    if is_lora(folder):
        from aligntrain.model.lora import merge_lora

        merge_lora(trained)
    with atomic.folder(output) as unfinished:
        if format == "llava":
            parameters = _llava(trained, processor, unfinished, run_of(model), vector, cost)
        else:
            parameters = _llm(trained, processor, unfinished, run_of(model))
    return Exported(
        output, "llava" if format == "llava" else "llm", parameters, vector=vector, cost=cost
    )


def _cost(model: Path, vector: str) -> str:
    """Say what the fixed `vector` costs, from the sweep that `aligntrain gate` left in `model`."""
    measured = "aligntrain gate --sweep measures it on held-out questions"
    summary = model / GATE / GATE_SUMMARY
    try:
        report = json.loads(summary.read_bytes())
        settings = next(iter(report["sweep"]["types"].values()))
        by_vector = {str(setting["level"]): setting for setting in settings}
        fixed, own = by_vector[vector], by_vector["None"]
        loss, data = fixed["difference"], public_name(report["data"])
        said = (
            f"against the gate's mix, on {fixed['count']:,} questions of {data}: "
            f"{loss['mean']:+.4f} ({loss['low']:+.4f} to {loss['high']:+.4f}) nats a token"
        )
        if fixed["accuracy"] and own["accuracy"]:
            right, before = (100 * one["accuracy"]["mean"] for one in (fixed, own))
            said += f", {right:.1f} % right answers instead of {before:.1f} %"
    except FileNotFoundError:
        return f"not measured; {measured}"
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return f"not measured: {GATE}/{GATE_SUMMARY} has no sweep with it; {measured}"
    return said


def merge(run: str | Path, output: str | Path) -> Merged:
    """Write the model of the LoRA run `run` to the folder `output`, LoRA added to its matrices.

    The result is in transformers' format and the run's own type (16 or 32 bits even if it trained
    on 4), and answers like the run's own export up to rounding. Works on the CPU and holds the
    model in memory.

    Raises:
        InputError: `run` has no LoRA or is not finished, its base model is gone, or `output` is
            not empty.
    """
    folder = model_folder(run)
    if not is_lora(folder):
        raise InputError(f"{folder} has no LoRA to merge: it is a whole model; use it as it is.")
    output = _free(output)
    from aligntrain.model.lora import merge_lora
    from aligntrain.train.save import USE, write_model

    model, processor = load_model(folder)
    matrices = merge_lora(model)
    kind = "A whole model, into whose matrices LoRA is merged."
    with atomic.folder(output) as unfinished:
        write_model(model, processor, unfinished, model.state_dict())
        write_card(unfinished, run_of(run), kind=kind, use=USE)
    return Merged(output, model.num_parameters(), matrices)


def _free(output: str | Path) -> Path:
    """Return the folder `output`, or raise InputError if it is a file or holds something."""
    output = Path(output)
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"{output} exists already; give another output.")
    return output


def _llava(
    model: "AlignGPTForConditionalGeneration",
    processor: "AlignGPTProcessor",
    folder: Path,
    run: Path | None,
    vector: str | None,
    cost: str | None,
) -> int:
    from aligntrain.export.llava import USE, to_llava, vector_names
    from aligntrain.train.save import forget_places

    names = vector_names(model.config) if vector else []
    llava, llava_processor = to_llava(model, processor, vector)
    forget_places(llava.config)
    llava.save_pretrained(folder)
    llava_processor.save_pretrained(folder)
    notes = (
        "Its vocabulary has more tokens than the LLM's own, `<image>` among them; "
        "`generation_config.json` keeps them from being written."
    )
    if vector:
        notes = (
            "Its vocabulary has more tokens than the LLM's own, among them `<image>` and "
            f"{', '.join(f'`<level_{name}>`' for name in names)}, whose embeddings are the "
            "vectors of the levels; `generation_config.json` keeps them from being written. The "
            f"chat template puts `<level_{vector}>` before a text with an image; "
            f"`apply_chat_template(…, level={names[0]!r})`, on a server `chat_template_kwargs`, "
            "takes another."
        )
    if cost:
        notes += f"\n\nCost of the fixed vector: {cost}."
    write_card(
        folder,
        run,
        kind="A LLaVA of transformers: it needs no other package.",
        use=USE.replace("FOLDER", '"."'),
        notes=notes,
    )
    return llava.num_parameters()


def _llm(
    model: "AlignGPTForConditionalGeneration",
    processor: "AlignGPTProcessor",
    folder: Path,
    run: Path | None,
) -> int:
    llm, tokenizer, config = model.model.language_model, processor.tokenizer, model.config
    placeholders_end = config.align_token_id + config.levels + 1
    if config.token_count == max(config.llm_vocab_size, placeholders_end):
        # Nobody has added tokens of their own behind them: the vocabulary as it was.
        tokenizer = without_marks(tokenizer)
        llm.resize_token_embeddings(config.llm_vocab_size, mean_resizing=False)
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
