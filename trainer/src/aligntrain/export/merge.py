"""`aligntrain merge`: the whole model of a LoRA run."""

from dataclasses import dataclass
from pathlib import Path

from alignshared import InputError, atomic
from aligntrain.inference.load import is_lora, load_model, model_folder
from aligntrain.runs.card import run_of, write_card


@dataclass(frozen=True, slots=True)
class Merged:
    """Folder and parameters of a merged model, and how many matrices LoRA changed."""

    output: Path
    parameters: int
    matrices: int


def merge(run: str | Path, output: str | Path) -> Merged:
    """Write the model of the LoRA run `run` to the folder `output`, LoRA added to its matrices.

    The result is in transformers' format and the run's own type (16 or 32 bits even if it trained
    on 4), and answers like the run's own export up to rounding. Works on the CPU and holds the
    model in memory.

    Raises:
        InputError: `run` has no LoRA or is not finished, its base model is gone, or `output` is
            not empty.
    """
    folder, output = model_folder(run), Path(output)
    if not is_lora(folder):
        raise InputError(f"{folder} has no LoRA to merge: it is a whole model; use it as it is.")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"{output} exists already; give another output.")
    from aligntrain.model.lora import merge_lora
    from aligntrain.train.save import USE, write_model

    model, processor = load_model(folder)
    matrices = merge_lora(model)
    kind = "A whole model, into whose matrices LoRA is merged."
    with atomic.folder(output) as unfinished:
        write_model(model, processor, unfinished, model.state_dict())
        write_card(unfinished, run_of(run), kind=kind, use=USE)
    return Merged(output, model.num_parameters(), matrices)
