"""Ship a fine-tuned run as one of the demo's models: what `aligntrain chat demo` answers with.

uv run python pipelines/demo_data/ship_model.py RUN --figures FIGURES [--name demo-smollm2]

Copies what LoRA has learned, in 16 bits, and a card that says what the model knows.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import torch
from figures import FILE, Figures, percent, read_figures
from safetensors import safe_open
from safetensors.torch import save_file

from alignshared import InputError, atomic
from alignshared.demo import MODELS, model_path
from aligntrain.inference.load import Base, is_lora, model_folder
from aligntrain.model.build import KNOWN
from aligntrain.runs.card import CARD

logger = logging.getLogger("ship_model")

KNOWS = """## What it knows

Drawings of emoji, and nothing else: {known} concepts in drawings by five vendors, with captions
of mixed quality, and 900 further ones, asked about in conversations. Photographs are foreign to
it, and so are questions of other kinds than those below. Test images are drawings by Noto, a
vendor that it has not seen.

| asked | right | best constant answer |
|---|---:|---:|
{rows}

Before fine-tuning it captions at {levels} levels: at the top one {right} of the captions are the
right name, which the vision tower alone finds among the {known} in {retrieval}.
"""
QUESTIONS = {
    "name": "What is this?",
    "group": "Which group is this in?, concepts that it has not seen",
    "is_this": "Is this a …?, concepts that it has not seen",
}


def knows(figures: Figures) -> str:
    """Return the card's section on what the model of `figures` knows."""
    rows = [
        f"| {QUESTIONS[kind]} | {percent(asked.accuracy)} of {asked.accuracy.count} "
        f"| {100 * asked.constant:.1f} % |"
        for kind, asked in figures.questions.items()
    ]
    return KNOWS.format(
        known=len(figures.images),
        rows="\n".join(rows),
        levels=figures.levels,
        right=percent(figures.share(figures.levels, "right name")),
        retrieval=percent(figures.retrieval),
    )


def in_16_bits(source: Path, target: Path) -> None:
    """Copy the tensors of a safetensors file as bfloat16, with its metadata."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name).to(torch.bfloat16) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, target, metadata=file.metadata())


def ship(run: Path, figures: Figures, output: Path) -> None:
    """Write the model of `run` to the folder `output`, in place of what is there.

    Raises:
        InputError: it is not what LoRA has learned on models that ship or install by name.
    """
    place = model_folder(run)
    if not is_lora(place):
        raise InputError(f"{run} is no LoRA run; fine-tune with a recipe that has a section lora.")
    base = Base.read(place)
    if base.model is not None or not {base.llm, base.vision_tower} <= KNOWN:
        raise InputError(
            f"{run} learned on {base.name}, which nobody else has; fine-tune on models that are "
            f"known by name: {', '.join(sorted(KNOWN))}."
        )
    with atomic.folder(output, replace=True) as unfinished:
        for file in sorted(path for path in place.rglob("*") if path.is_file()):
            target = unfinished / file.relative_to(place)
            target.parent.mkdir(exist_ok=True)
            if file.suffix == ".safetensors":
                in_16_bits(file, target)
            else:
                shutil.copyfile(file, target)
            target.chmod(0o644)
        card = (place / CARD).read_text(encoding="utf-8")
        before, mark, after = card.partition("## Base models")
        (unfinished / CARD).write_text(f"{before}{knows(figures)}\n{mark}{after}", encoding="utf-8")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    logger.info("%s: %.1f MB", output, size / 1e6)


def main() -> None:
    """Parse the arguments and copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of the fine-tuned run")
    parser.add_argument("--figures", type=Path, required=True, help=f"its {FILE}, by measure.py")
    parser.add_argument("--name", choices=MODELS, default="demo", help="what it is called")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        ship(args.run, read_figures(args.figures), model_path(args.name))
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
