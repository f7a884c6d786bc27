"""Ask a trained model about demo pictures it has never seen, and count its right answers.

uv run python pipelines/demo_data/answer_questions.py runs/demo-finetune

An answer is right if it is the expected one, but for case and a full stop. Two baselines stand
beside the model: the best constant answer to each kind of question, and with `--untrained` the same
LLM and vision tower before any training.
"""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from aligntrain.evaluate.short_answers import Score, ShortQuestion, ask, read_questions, scores
from aligntrain.inference.load import load_model
from aligntrain.model.build import build_model, build_processor
from aligntrain.recipes import load_recipe
from aligntrain.terminal import counting, hide_loading

logger = logging.getLogger("answer_questions")

QUESTIONS = Path("data/demo/instructions/questions.json")
KINDS = ("is_this", "group", "name")
SHOWN = 6


def load_trained(run: Path) -> tuple[Any, Any]:
    """Model and processor of a finished run."""
    return load_model(run, dtype=torch.float32)


def load_untrained(seed: int = 0) -> tuple[Any, Any]:
    """The model of the recipe `demo` as it is before its first step."""
    recipe = load_recipe("demo", "finetune")
    tower, llm = recipe.model.vision_tower, recipe.model.llm
    torch.manual_seed(seed)
    model = build_model(tower, llm, **recipe.model.choices)
    processor = build_processor(
        tower, llm, model.config, aspect=recipe.data.aspect, template=recipe.data.template
    )
    return model, processor


def answers(model: Any, processor: Any, questions: list[ShortQuestion]) -> list[str]:
    """What the model says to each of `questions`."""
    with counting() as begin:
        return ask(model, processor, questions, done=begin("asking", len(questions)))


def _record(question: ShortQuestion, said: str) -> dict[str, Any]:
    record = asdict(question)
    record["picture"] = str(record.pop("image"))
    return record | {"said": said}


def _report(who: str, found: dict[str, Score]) -> None:
    for kind, score in found.items():
        logger.info(
            "%s  %-8s %5.1f %% of %d right (best constant answer: %.1f %%)",
            who, kind, 100 * score.accuracy, score.asked, 100 * score.constant,
        )  # fmt: skip


def main() -> None:
    """Parse the arguments and ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder of a finished fine-tuning")
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--pictures", type=int, help="ask about so many; default: all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of these kinds; default: all")
    parser.add_argument("--untrained", action="store_true", help="ask the untrained model as well")
    parser.add_argument("--output", type=Path, help="JSON with every answer and the scores")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hide_loading()
    questions = read_questions(args.questions, args.pictures, args.kinds)
    written: dict[str, Any] = {}
    models = {"trained": lambda: load_trained(args.run)}
    if args.untrained:
        models["untrained"] = load_untrained
    for who, load in models.items():
        said = answers(*load(), questions)
        found = scores(questions, said)
        _report(who, found)
        written[who] = {
            "scores": {kind: asdict(score) for kind, score in found.items()},
            "answers": [_record(q, text) for q, text in zip(questions, said, strict=True)],
        }
    for record in written["trained"]["answers"][:: max(1, len(questions) // SHOWN)][:SHOWN]:
        logger.info("%s  %s  %s", record["picture"], record["question"], record["said"])
    if args.output:
        args.output.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
