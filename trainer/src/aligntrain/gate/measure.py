"""Gate weights of prompts, without running the LLM, and answers and losses with a forced level."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, TypeVar

import torch
from PIL import Image

from aligntrain.data.dataset import Row, ShardedDataset, decode_sample_image
from aligntrain.data.loader import Preparation, Sample, collate, make_sample
from aligntrain.evaluate.short_answers import LONGEST_ANSWER, is_right, is_short
from aligntrain.gate.questions import GateQuestion
from aligntrain.inference.generate import (
    Messages,
    Question,
    generate_answers,
    messages_of,
    model_inputs,
)
from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligntrain.prompts.conversation import InvalidSample, Turn
from aligntrain.prompts.placeholders import IMAGE_MARK
from aligntrain.prompts.templates import CAPTION_PROMPT

T = TypeVar("T")

Vector = int | Literal["mean"] | None
"""Which alignment vector: that of a forced level, the mix with equal weights of the local levels in
place of the gate's (`mean`), or the model's own mix.
"""

_MAX_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class QuestionWithImage:
    """Question with its decoded image."""

    question: GateQuestion
    image: Image.Image

    @property
    def messages(self) -> Messages:
        """Prompt in the form of a processor's chat template."""
        text = self.question.question.replace(IMAGE_MARK, " ")  # a caption may hold the mark
        system = self.question.system
        before = [] if system is None else [{"role": "system", "content": system}]
        return [*before, *messages_of(text, [self.image])]


def with_images(
    shards: ShardedDataset, questions: Sequence[GateQuestion]
) -> Iterator[QuestionWithImage]:
    """Yield `questions` with their images, skipping images that cannot be decoded."""
    for question in questions:
        encoded = shards.row(question.row).image
        try:
            yield QuestionWithImage(question, decode_sample_image(encoded or b""))
        except InvalidSample:
            continue


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield `items` in lists of `size`; the last may be shorter."""
    while batch := list(islice(items, size)):
        yield batch


@torch.inference_mode()
def gate_weights(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    questions: Sequence[QuestionWithImage],
) -> torch.Tensor:
    """Return the gate's weights [B, N-1] float32 of the local levels for each prompt.

    Only the embeddings before the LLM are computed. Prompts are padded on the right and the gate
    reads no padding, so weights depend on the batch only by rounding.
    """
    messages = [question.messages for question in questions]
    inputs = model_inputs(model, processor, messages, padding_side="right")
    _, weights = model.model.embed(
        inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    )
    assert weights is not None  # an adaptive model: its gate reads every prompt
    return weights.float().cpu()


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Results of question `number` by vector.

    `losses` of the reference answer, of `tokens` tokens, are in nats per token. `said` and `right`
    hold the answers and their match with a short reference, of each vector but `mean`; both are
    empty without one.
    """

    number: int
    tokens: int
    losses: dict[Vector, float]
    said: dict[Vector, str]
    right: dict[Vector, bool]


@torch.inference_mode()
def sweep_levels(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    numbered: Iterator[tuple[int, QuestionWithImage]],
    *,
    batch_size: int,
    done: Callable[[int], None],
) -> Iterator[SweepResult]:
    """Answer each of the `numbered` questions with every level forced and with the model's own mix.

    A model with a gate also gives the loss of a mix with equal weights. The own mix is that of the
    prompt alone, as at inference, even for `gate_text` full. A model without levels answers once,
    as if by its mix. Questions too long for the model are left out. `done` is called with the size
    of each finished batch.
    """
    forced = range(1, model.config.levels + 1) if model.config.has_table else ()
    settings = (None, *forced)
    vectors: list[Vector] = [*settings, *(["mean"] if model.config.has_gate else [])]
    positions = getattr(model.config.text_config, "max_position_embeddings", None) or _MAX_LENGTH
    preparation = Preparation.of(
        processor, template=processor.template, max_length=min(_MAX_LENGTH, positions)
    )
    for batch in batches(numbered, batch_size):
        samples = {number: _sample(item, preparation) for number, item in batch}
        usable = {number: item for number, item in batch if samples[number] is not None}
        if usable:
            questions = list(usable.values())
            read = [sample for sample in samples.values() if sample is not None]
            losses = _losses(model, processor, questions, read, preparation, vectors)
            answers = _answers(model, processor, questions, settings, batch_size)
            for number, item, (tokens, loss), said in zip(
                usable, questions, losses, answers, strict=True
            ):
                reference = item.question.answer or ""
                right: dict[Vector, bool] = {
                    vector: is_right(text, reference) for vector, text in said.items()
                }
                yield SweepResult(number, tokens, loss, said, right)
        done(len(batch))


def _sample(item: QuestionWithImage, preparation: Preparation) -> Sample | None:
    """Return the question with its reference answer as a sample, None if it is too long."""
    question = item.question
    text, reference = question.question, question.answer
    if reference is None:  # a pair: its caption is the reference
        text, reference = CAPTION_PROMPT, question.question
    turns = (Turn("human", text), Turn("gpt", reference))
    if question.system is not None:
        turns = (Turn("system", question.system), *turns)
    # The image is decoded already; make_sample only checks that there is one.
    row = Row(question.id, b"+", reference, turns, question.level)
    try:
        return make_sample(row, preparation.encoder)
    except InvalidSample:
        return None


def _losses(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    questions: Sequence[QuestionWithImage],
    samples: Sequence[Sample],
    preparation: Preparation,
    vectors: Sequence[Vector],
) -> list[tuple[int, dict[Vector, float]]]:
    """Return the tokens of each question's reference answer, and its loss by vector."""
    pixels = [preparation.pixels(item.image) for item in questions]
    batch = collate(samples, pixels, preparation.pad_id)
    inputs = {
        name: batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels")
    }
    pixel_values = batch["pixel_values"]
    assert pixel_values is not None  # every question has an image
    inputs["pixel_values"] = pixel_values.to(model.device, dtype=model.dtype)
    own_mix: dict[str, torch.Tensor] = {}
    if model.config.has_gate and processor.template != "plain":
        # A pair is asked for its caption, which the gate must not read.
        asked = [
            item
            if item.question.answer is not None
            else replace(item, question=replace(item.question, question=CAPTION_PROMPT))
            for item in questions
        ]
        own_mix["gate_weights"] = gate_weights(model, processor, asked).to(model.device)
    losses: list[dict[Vector, float]] = [{} for _ in questions]
    tokens: list[int] = []
    for vector in vectors:
        output = model(
            **inputs, **(own_mix if vector is None else _forced(model, vector, len(questions)))
        )
        tokens = output.sample_tokens.tolist()
        for of_question, loss in zip(losses, output.sample_loss.tolist(), strict=True):
            of_question[vector] = loss
    return list(zip(tokens, losses, strict=True))


def _forced(
    model: AlignGPTForConditionalGeneration, vector: int | Literal["mean"], rows: int
) -> dict[str, torch.Tensor]:
    """Return the arguments of `forward` that give `vector` to each of `rows` rows."""
    if vector == "mean":
        local = model.config.levels - 1
        return {"gate_weights": torch.full((rows, local), 1 / local, device=model.device)}
    return {"levels": torch.full((rows,), vector, device=model.device)}


def _answers(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    questions: Sequence[QuestionWithImage],
    settings: Sequence[int | None],
    batch_size: int,
) -> list[dict[Vector, str]]:
    """Return the answers to each question by setting, none where the reference is not short."""
    order = [
        (index, setting)
        for setting in settings
        for index, item in enumerate(questions)
        if is_short(item.question.answer)
    ]
    prompts = (Question(questions[index].messages, setting) for index, setting in order)
    answers = generate_answers(
        model, processor, prompts, max_new_tokens=LONGEST_ANSWER, batch_size=batch_size
    )
    texts: list[dict[Vector, str]] = [{} for _ in questions]
    for (index, setting), answer in zip(order, answers, strict=True):
        texts[index][setting] = answer.text
    return texts
