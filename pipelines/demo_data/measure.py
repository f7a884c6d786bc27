"""Measure what the demo's models have learned: levels, captions of test images, answers.

uv run python pipelines/demo_data/measure.py --output runs/demo/figures.json

Test images are drawings by a vendor that no model was trained on. Beside the figures stand what
needs no learning: the best constant answer to each kind of question, and with `--untrained` the
same model before its first step. `figures.py` has the shape of what is written.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import evaluate_clip
import torch
from build_instructions import Drawing, read_drawings
from captions import TEMPLATE, bare_label, group_name, usable_tags, with_article
from conversations import GROUPING, NAMING
from demo_model import load as load_clip
from figures import (
    ANOTHER,
    FILE,
    GROUP,
    OTHER,
    RIGHT,
    SHOWN,
    TAG,
    Answer,
    Asked,
    Curve,
    Figures,
    HeldOutLosses,
    Plain,
    TestImage,
    lines,
    write_figures,
)
from PIL import Image

from alignshared import InputError
from alignshared.demo import clip_path, held_out_path, pairs_path
from alignshared.images import decode_image
from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.index import read_index
from aligntrain.evaluate.intervals import Interval, mean_interval, share_interval
from aligntrain.evaluate.short_answers import (
    LONGEST_ANSWER,
    ShortQuestion,
    ask,
    is_right,
    read_questions,
    scores,
)
from aligntrain.gate.matrix import loss_matrix
from aligntrain.gate.measure import SweepResult, sweep_levels, with_images
from aligntrain.gate.questions import GateQuestion, read_gate_questions
from aligntrain.inference.generate import Question, generate_answers, messages_of
from aligntrain.inference.load import load_for_inference, model_folder
from aligntrain.model.build import build_model, build_processor
from aligntrain.runs.folder import read_metrics, read_run
from aligntrain.terminal import counting, hide_loading

if TYPE_CHECKING:
    from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor
    from aligntrain.runs.folder import RunSpec

    Loaded = tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]

logger = logging.getLogger("measure")

QUESTIONS = Path("data/demo/instructions/questions.json")
SEED = 0
BATCH = 64
Swept = tuple[list[GateQuestion], list[SweepResult]]
"""Pairs, and results whose numbers are places in them."""
LONGEST_CAPTION = 24
"""Maximum tokens of a caption."""

Progress = Callable[[str, int], Callable[[int], None]]
"""Called with a task and its total; returns a callback for what is done."""


def silent(_what: str, _total: int) -> Callable[[int], None]:
    """Progress that nobody sees."""
    return lambda _done: None


@dataclass(frozen=True)
class Vocabulary:
    """What captions may say: the names, the groups and the tags of the known concepts."""

    names: frozenset[str]
    groups: frozenset[str]
    tags: frozenset[str]

    @classmethod
    def of(cls, drawings: Sequence[Drawing]) -> Vocabulary:
        """Return the vocabulary of the captions of `drawings`."""
        concepts = [drawing.concept for drawing in drawings]
        return cls(
            frozenset(bare_label(concept.label).lower() for concept in concepts),
            frozenset(group_name(concept).lower() for concept in concepts),
            frozenset(tag.lower() for concept in concepts for tag in usable_tags(concept)),
        )

    def kind(self, caption: str, drawing: Drawing) -> str:
        """Return the kind of a `caption` of `drawing`, one of KINDS.

        A word that means several things is taken for what is true of the drawing.
        """
        prefix, concept = TEMPLATE.format(""), drawing.concept
        said = " ".join(caption.lower().split()).removeprefix(prefix)
        if said == bare_label(concept.label).lower():
            return RIGHT
        if said in self.groups:
            return GROUP
        if said in {tag.lower() for tag in usable_tags(concept)}:
            return TAG
        if said in self.names:
            return ANOTHER
        return TAG if said in self.tags else OTHER


def known_images(seed: int = SEED) -> tuple[list[Drawing], Vocabulary]:
    """Return the test images of known concepts, shuffled, and what captions may say."""
    trained_on = read_drawings(pairs_path())
    keys = {drawing.concept.key for drawing in trained_on}
    known = [d for d in read_drawings(held_out_path()) if d.concept.key in keys]
    if not known:
        raise InputError(
            f"{held_out_path()} holds no drawings of the concepts in {pairs_path()}; write both "
            "again with pipelines/demo_data/build_pairs.py."
        )
    random.Random(f"shown:{seed}").shuffle(known)
    return known, Vocabulary.of(trained_on)


def finished_run(folder: Path, phase: str) -> RunSpec:
    """Return the finished run of `phase` in `folder`.

    Raises:
        InputError: it is no finished run, or one of another phase.
    """
    spec = read_run(folder)
    if spec.recipe.phase != phase:
        raise InputError(f"{folder} is a run of {spec.recipe.phase}; give one of {phase}.")
    model_folder(folder)
    return spec


def load_untrained(spec: RunSpec, seed: int = SEED) -> Loaded:
    """Return the model of `spec` as it is before its first step."""
    names, data = spec.recipe.model, spec.recipe.data
    torch.manual_seed(seed)
    model = build_model(names.vision_tower, names.llm, **names.choices)
    processor = build_processor(
        names.vision_tower, names.llm, model.config, aspect=data.aspect, template=data.template
    )
    return model.eval(), processor


def sweep_held_out(spec: RunSpec, loaded: Loaded, begin: Progress = silent) -> Swept:
    """Return the pairs that the pre-training `spec` held back, and their losses by forced level.

    Raises:
        InputError: no pairs, or none with a full caption, were held back.
    """
    shards = ShardedDataset(spec.data)
    held_out = set(read_index(shards).validation_rows(spec.recipe.data.validation_share).tolist())
    pairs = read_gate_questions(shards, by="caption_kind").questions
    pairs = [pair for pair in pairs if pair.row in held_out]
    if not any(pair.kind == "full" for pair in pairs):
        raise InputError(
            f"{spec.folder} held back no pairs of {spec.data} with a full caption; train with a "
            "greater data.validation_share."
        )
    numbered = enumerate(with_images(shards, pairs))
    done = begin("forcing levels", len(pairs))
    return pairs, list(sweep_levels(*loaded, numbered, batch_size=BATCH, done=done))


def of_full(swept: Swept, level: int | None) -> dict[int, float]:
    """Return the nats of each full caption, by its row, with `level` forced; None forces none."""
    pairs, results = swept
    return {
        pairs[one.number].row: one.tokens * one.losses[level]
        for one in results
        if pairs[one.number].kind == "full"
    }


def held_out_losses(swept: Swept, levels: int) -> HeldOutLosses:
    """Return the losses of the pairs `swept` with a model of so many `levels`."""
    mix = of_full(swept, None)
    gained, lost = difference(mix, of_full(swept, levels)), difference(of_full(swept, 1), mix)
    return HeldOutLosses(loss_matrix(*swept), gained, lost)


def difference(more: Mapping[int, float], less: Mapping[int, float]) -> Interval:
    """Return the mean of `more` - `less`, row by row."""
    return mean_interval([more[row] - less[row] for row in more.keys() & less.keys()])


def _check_levels(spec: RunSpec) -> None:
    if spec.recipe.model.mixing == "none":
        raise InputError(
            f"{spec.folder} has mixing none and no levels to force; give a run of another mixing."
        )


def plain_run(folder: Path, beside: RunSpec) -> RunSpec:
    """Return the finished pre-training in `folder`: that of `beside`, without levels.

    Raises:
        InputError: it is another run.
    """
    spec = finished_run(folder, "pretrain")
    levelled = beside.recipe
    expected = levelled.model_copy(
        update={"model": levelled.model.model_copy(update={"mixing": "none"})}
    )
    if spec.recipe != expected or spec.data_sha256 != beside.data_sha256:
        raise InputError(
            f"{folder} is not the run {beside.folder} without levels; train it with the same data "
            "and settings and --set model.mixing=none."
        )
    return spec


def caption_images(
    loaded: Loaded, drawings: Sequence[Drawing], begin: Progress = silent
) -> list[list[str]]:
    """Return the greedy captions of each of `drawings` with level 1, 2, ... forced.

    Of a model without levels there is one.
    """
    model, processor = loaded
    levels = range(1, model.config.levels + 1) if model.config.has_table else (None,)
    done = begin("captioning", len(drawings) * len(levels))

    def questions() -> Iterator[Question]:
        for drawing in drawings:
            messages = messages_of("", [decode_image(drawing.png)])
            yield from (Question(messages, level, drawing.id) for level in levels)

    texts: list[str] = []
    for answer in generate_answers(
        model, processor, questions(), max_new_tokens=LONGEST_CAPTION, batch_size=BATCH
    ):
        texts.append(" ".join(answer.text.split()))
        done(1)
    return [texts[at : at + len(levels)] for at in range(0, len(texts), len(levels))]


def retrieval(drawings: Sequence[Drawing]) -> Interval:
    """Return the share of `drawings` whose nearest caption by the demo CLIP is the right one.

    The choice is among the full captions of all.
    """
    model, preprocess, tokenizer = load_clip(clip_path())
    images = [Image.open(io.BytesIO(drawing.png)).convert("RGB") for drawing in drawings]
    captions = [TEMPLATE.format(bare_label(drawing.concept.label)) for drawing in drawings]
    found = evaluate_clip.retrieval(
        evaluate_clip.embed_images(model, preprocess, images),
        evaluate_clip.embed_texts(model, tokenizer, captions),
    )
    return share_interval(round(found["r1"] * len(drawings)), len(drawings))


def ask_questions(
    loaded: Loaded,
    questions: Sequence[ShortQuestion],
    untrained: Loaded | None = None,
    begin: Progress = silent,
) -> dict[str, Asked]:
    """Return the accuracy of the model on `questions` by kind, beside its baselines."""
    found = {}
    for name, who in {"asking": loaded, "asking the untrained": untrained}.items():
        if who is not None:
            said = ask(*who, questions, batch_size=BATCH, done=begin(name, len(questions)))
            found[name] = scores(questions, said)
    before = found.get("asking the untrained", {})
    return {
        kind: Asked(
            share_interval(score.right, score.asked),
            score.constant,
            before[kind].accuracy if before else None,
        )
        for kind, score in found["asking"].items()
    }


def answer_about(loaded: Loaded, drawings: Sequence[Drawing]) -> list[list[Answer]]:
    """Return the model's answers to what each of `drawings` is and to which group it belongs."""
    asked = [
        (drawing, question, expected)
        for drawing in drawings
        for question, expected in (
            (NAMING[0], with_article(drawing.concept.label)),
            (GROUPING[0], group_name(drawing.concept)),
        )
    ]
    prompts = (
        Question(messages_of(question, [decode_image(drawing.png)]), name=drawing.id)
        for drawing, question, _ in asked
    )
    said = generate_answers(*loaded, prompts, max_new_tokens=LONGEST_ANSWER, batch_size=BATCH)
    answers = [
        Answer(
            question, expected, answer.text, is_right(answer.text, expected), answer.gate_weights
        )
        for (_, question, expected), answer in zip(asked, said, strict=True)
    ]
    return [answers[at : at + 2] for at in range(0, len(answers), 2)]


def curve(spec: RunSpec) -> Curve:
    """Return the losses that a run has recorded."""
    metrics = read_metrics(spec.folder)
    training, held_out = (
        [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        for name in ("loss", "validation_loss")
    )
    return Curve(spec.recipe.batch.global_size, training, held_out)


def measure(
    pretrained: Path,
    finetuned: Path,
    questions: Sequence[ShortQuestion],
    *,
    plain: Path | None = None,
    untrained: bool = False,
    begin: Progress = silent,
) -> Figures:
    """Measure everything on two finished runs, and a `plain` one without levels beside them.

    Raises:
        InputError: a run or its data cannot be used.
    """
    spec, fine_spec = finished_run(pretrained, "pretrain"), finished_run(finetuned, "finetune")
    _check_levels(spec)
    plain_spec = None if plain is None else plain_run(plain, spec)
    captioner, answerer = load_for_inference(pretrained), load_for_inference(finetuned)
    levels = captioner[0].config.levels
    swept = sweep_held_out(spec, captioner, begin)
    drawings, vocabulary = known_images()
    captions = caption_images(captioner, drawings, begin)
    answers = answer_about(answerer, drawings[:SHOWN])
    answers += [[] for _ in drawings[len(answers) :]]
    images = [
        TestImage(
            drawing.id,
            bare_label(drawing.concept.label),
            group_name(drawing.concept),
            said,
            [vocabulary.kind(text, drawing) for text in said],
            answered,
        )
        for drawing, said, answered in zip(drawings, captions, answers, strict=True)
    ]
    without = None
    if plain_spec is not None:
        unlevelled = load_for_inference(plain_spec.folder)
        cost = of_full(sweep_held_out(plain_spec, unlevelled, begin), None)
        said = [texts[0] for texts in caption_images(unlevelled, drawings, begin)]
        kinds = [vocabulary.kind(text, one) for text, one in zip(said, drawings, strict=True)]
        without = Plain(str(plain), said, kinds, difference(cost, of_full(swept, levels)))
    before = load_untrained(fine_spec) if untrained else None
    return Figures(
        str(pretrained),
        str(finetuned),
        levels,
        held_out_losses(swept, levels),
        images,
        retrieval(drawings),
        ask_questions(answerer, questions, before, begin),
        {one.recipe.phase: curve(one) for one in (spec, fine_spec)},
        datetime.now(UTC).isoformat(timespec="seconds"),
        without,
    )


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pretrained", type=Path, default=Path("runs/demo-pretrain"))
    parser.add_argument("--finetuned", type=Path, default=Path("runs/demo-finetune"))
    parser.add_argument("--plain", type=Path, help="the same pre-training without levels")
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--untrained", action="store_true", help="ask the untrained model as well")
    parser.add_argument("--output", type=Path, default=Path("runs/demo") / FILE)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    hide_loading()
    try:
        questions = read_questions(args.questions)
        with counting() as begin:
            figures = measure(
                args.pretrained,
                args.finetuned,
                questions,
                plain=args.plain,
                untrained=args.untrained,
                begin=begin,
            )
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    write_figures(figures, args.output)
    logger.info("%s", "\n".join(lines(figures)))
    logger.info("\n%s", args.output)


if __name__ == "__main__":
    main()
