"""`aligntrain merge`: from what a LoRA run has learned to a whole model."""

from dataclasses import dataclass
from pathlib import Path

from alignshared import InputError, atomic
from aligntrain.inference.load import is_lora, load_model, model_folder
from aligntrain.runs.card import run_of, write_card


@dataclass(frozen=True, slots=True)
class Merged:
    """The whole model that `merge` wrote: its folder, parameters, and how many matrices changed."""

    output: Path
    parameters: int
    matrices: int


def merge(run: str | Path, output: str | Path) -> Merged:
    """Write the model of the LoRA run `run` to the folder `output`, LoRA added to its matrices.

    It is in transformers' form, as the export of a run without LoRA, in the type that the run had
    (16 or 32 bits also where it trained on 4), and answers as the run's own export does, but for
    rounding. Works on the CPU and holds the model in memory.

    Raises:
        InputError: `run` holds no LoRA or is not finished, its base is not where it was, or there
            is something in `output` already.
    """
    place, output = model_folder(run), Path(output)
    if not is_lora(place):
        raise InputError(f"{place} has no LoRA to merge: it is a whole model; use it as it is.")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"{output} exists already; give another output.")
    from aligntrain.model.lora import merge_lora
    from aligntrain.train.save import USE, write_model

    model, processor = load_model(place)
    matrices = merge_lora(model)
    kind = "A whole model, into whose matrices LoRA is merged."
    with atomic.folder(output) as unfinished:
        write_model(model, processor, unfinished, model.state_dict())
        write_card(unfinished, run_of(run), kind=kind, use=USE)
    return Merged(output, model.num_parameters(), matrices)
