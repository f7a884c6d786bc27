"""Ask a trained model about demo pictures it has never seen, and count its right answers.

uv run python pipelines/demo_data/answer_questions.py data/demo/finetune

An answer is right if it is the expected one, but for case and a full stop. Two baselines stand
beside the model: the best constant answer to each kind of question, and with `--untrained` the same
LLM and vision tower before any training.
"""

import argparse
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track

from aligntrain.chat import Chat
from aligntrain.model.build import build_model, build_processor
from aligntrain.recipes import load_recipe
from aligntrain.terminal import hide_loading

logger = logging.getLogger("answer_questions")

QUESTIONS = Path("data/demo/instructions/questions.json")
KINDS = ("is_this", "group", "name")
BATCH = 32
LONGEST = 16
"""Tokens of an answer, at most; the longest expected one has fewer."""

SHOWN = 6

Question = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers to `asked` questions of a kind, and the share a constant answer would get."""

    asked: int
    right: int
    constant: float

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.asked


def load_trained(run: Path) -> tuple[Any, Any]:
    """Model and processor of a finished run."""
    chat = Chat.load(run, device="cpu")
    return chat.model, chat.processor


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


def read_questions(
    path: Path, pictures: int | None = None, kinds: Sequence[str] | None = None
) -> list[Question]:
    """The questions of `kinds` on so many of the held-out pictures, spread over all of them; None
    for every one.
    """
    questions: list[Question] = json.loads(path.read_text(encoding="utf-8"))
    ids = list(dict.fromkeys(question["id"] for question in questions))
    wanted = min(pictures or len(ids), len(ids))
    kept = {ids[number * len(ids) // wanted] for number in range(wanted)}
    return [q for q in questions if q["id"] in kept and (kinds is None or q["kind"] in kinds)]


@torch.inference_mode()
def answers(model: Any, processor: Any, questions: Sequence[Question], folder: Path) -> list[str]:
    """What the model says to each of `questions`, whose pictures lie below `folder`."""
    # Of like length together, as padding costs as much as text.
    order = sorted(range(len(questions)), key=lambda at: len(questions[at]["question"]))
    said: dict[int, str] = {}
    starts = range(0, len(order), BATCH)
    for start in track(starts, description="asking", transient=True):
        numbers = order[start : start + BATCH]
        turns = [[_turn(questions[at], folder)] for at in numbers]
        batch = processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"padding_side": "left"},
        )  # fmt: skip
        written = model.generate(**batch, max_new_tokens=LONGEST, do_sample=False)
        texts = processor.tokenizer.batch_decode(
            written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        said |= dict(zip(numbers, texts, strict=True))
    return [said[at].strip() for at in range(len(questions))]


def scores(questions: Sequence[Question], said: Sequence[str]) -> dict[str, Score]:
    """How many answers are right, by kind of question."""
    by_kind: defaultdict[str, list[tuple[str, bool]]] = defaultdict(list)
    for question, answer in zip(questions, said, strict=True):
        by_kind[question["kind"]].append((question["answer"], is_right(question, answer)))
    return {
        kind: Score(
            len(found),
            sum(right for _, right in found),
            Counter(expected for expected, _ in found).most_common(1)[0][1] / len(found),
        )
        for kind, found in by_kind.items()
    }


def is_right(question: Question, answer: str) -> bool:
    """Whether `answer` is the expected one, but for case and a full stop."""
    return answer.strip(" .\n").lower() == question["answer"].lower()


def _turn(question: Question, folder: Path) -> dict[str, Any]:
    picture = Image.open(folder / question["image"])
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question["question"]}]
    return {"role": "user", "content": content}


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
    folder = args.questions.parent
    written: dict[str, Any] = {}
    models = {"trained": lambda: load_trained(args.run)}
    if args.untrained:
        models["untrained"] = load_untrained
    for who, load in models.items():
        said = answers(*load(), questions, folder)
        found = scores(questions, said)
        _report(who, found)
        written[who] = {
            "scores": {kind: asdict(score) for kind, score in found.items()},
            "answers": [q | {"said": text} for q, text in zip(questions, said, strict=True)],
        }
    for record in written["trained"]["answers"][:: max(1, len(questions) // SHOWN)][:SHOWN]:
        logger.info("%s  %s  %s", folder / record["image"], record["question"], record["said"])
    if args.output:
        args.output.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
