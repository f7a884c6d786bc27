"""Gate weights of prompts, without running the LLM, and answers and losses with a forced level."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from PIL import Image

from aligntrain.data.dataset import Row, ShardedDataset, decode_sample_image
from aligntrain.data.loader import Preparation, Sample, collate, make_sample
from aligntrain.evaluate.short_answers import LONGEST_ANSWER, is_right, is_short
from aligntrain.gate.questions import GateQuestion
from aligntrain.inference.generate import Question, generate_answers
from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligntrain.prompts.conversation import InvalidSample, Turn
from aligntrain.prompts.placeholders import IMAGE_MARK

T = TypeVar("T")

CAPTION_PROMPT = "Give a short caption."
"""The sweep's question about a pair, whose caption is the reference answer."""

_MAX_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class QuestionWithImage:
    """Question with its decoded image."""

    question: GateQuestion
    image: Image.Image

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Prompt in the form of a processor's chat template."""
        text = self.question.question.replace(IMAGE_MARK, " ")  # a caption may hold the mark
        content = [{"type": "image", "image": self.image}, {"type": "text", "text": text}]
        system = self.question.system
        before = [] if system is None else [{"role": "system", "content": system}]
        return [*before, {"role": "user", "content": content}]


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
    inputs: Any = processor.apply_chat_template(
        [question.messages for question in questions],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding_side": "right"},
    )
    inputs = inputs.to(model.device, dtype=model.dtype)
    _, weights = model.model.embed(
        inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    )
    assert weights is not None  # an adaptive model: its gate reads every prompt
    return weights.float().cpu()


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Results of question `number` by forced level, None for the model's own mix.

    `losses` of the reference answer are in nats per token. `said` and `right` hold the answers and
    their match with a short reference; both are empty without one.
    """

    number: int
    losses: dict[int | None, float]
    said: dict[int | None, str]
    right: dict[int | None, bool]


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

    The mix is that of the prompt alone, as at inference, even for `gate_text` full. Questions too
    long for the model are left out. `done` is called with the size of each finished batch.
    """
    settings = (None, *range(1, model.config.levels + 1))
    preparation = _preparation(model, processor)
    for batch in batches(numbered, batch_size):
        usable = [
            (number, question, sample)
            for number, question in batch
            for sample in _sample(question, preparation)
        ]
        if usable:
            numbers, questions, samples = (list(column) for column in zip(*usable, strict=True))
            losses = _losses(model, processor, questions, samples, preparation, settings)
            answers = _answers(model, processor, questions, settings, batch_size)
            for index, (number, question) in enumerate(zip(numbers, questions, strict=True)):
                texts = answers.get(index, {})
                reference = question.question.answer or ""
                right = {setting: is_right(text, reference) for setting, text in texts.items()}
                yield SweepResult(number, losses[index], texts, right)
        done(len(batch))


def _preparation(
    model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor
) -> Preparation:
    positions = getattr(model.config.text_config, "max_position_embeddings", None) or _MAX_LENGTH
    length = min(_MAX_LENGTH, positions)
    return Preparation.of(processor, template=processor.template, max_length=length)


def _sample(item: QuestionWithImage, preparation: Preparation) -> Iterator[Sample]:
    """Yield the question with its reference answer as a training sample, unless it is too long."""
    question = item.question
    text, reference = question.question, question.answer
    if reference is None:  # a pair
        text, reference = CAPTION_PROMPT, question.question
    turns = (Turn("human", text), Turn("gpt", reference))
    if question.system is not None:
        turns = (Turn("system", question.system), *turns)
    # The image is decoded already; make_sample only checks that there is one.
    row = Row(question.id, b"+", reference, turns, question.level)
    try:
        yield make_sample(row, preparation.encoder)
    except InvalidSample:
        return


def _losses(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    questions: Sequence[QuestionWithImage],
    samples: Sequence[Sample],
    preparation: Preparation,
    settings: Sequence[int | None],
) -> list[dict[int | None, float]]:
    """Return the loss of each question's reference answer by setting."""
    pixels = [preparation.pixels(question.image) for question in questions]
    batch = collate(samples, pixels, preparation.pad_id)
    inputs = {
        name: batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels")
    }
    pixel_values = batch["pixel_values"]
    assert pixel_values is not None  # every question has an image
    inputs["pixel_values"] = pixel_values.to(model.device, dtype=model.dtype)
    own_mix: dict[str, torch.Tensor] = {}
    if model.config.has_gate and processor.template != "plain":
        prompts = [_as_swept(question) for question in questions]
        own_mix["gate_weights"] = gate_weights(model, processor, prompts).to(model.device)
    losses: list[dict[int | None, float]] = [{} for _ in questions]
    for setting in settings:
        forced = own_mix if setting is None else {
            "levels": torch.full((len(questions),), setting, device=model.device)
        }  # fmt: skip
        output = model(**inputs, **forced)
        for index, loss in enumerate(output.sample_loss.tolist()):
            losses[index][setting] = loss
    return losses


def _as_swept(item: QuestionWithImage) -> QuestionWithImage:
    """Return `item` as asked in the sweep: a pair is asked for its caption."""
    if item.question.answer is not None:
        return item
    return QuestionWithImage(replace(item.question, question=CAPTION_PROMPT), item.image)


def _answers(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    questions: Sequence[QuestionWithImage],
    settings: Sequence[int | None],
    batch_size: int,
) -> dict[int, dict[int | None, str]]:
    """Return the answers to the questions with a short reference, by index and setting."""
    short = [index for index, item in enumerate(questions) if is_short(item.question.answer)]
    order = [(index, setting) for setting in settings for index in short]
    prompts = (Question(questions[index].messages, setting) for index, setting in order)
    answers = generate_answers(
        model, processor, prompts, max_new_tokens=LONGEST_ANSWER, batch_size=batch_size
    )
    texts: dict[int, dict[int | None, str]] = {index: {} for index in short}
    for (index, setting), answer in zip(order, answers, strict=True):
        texts[index][setting] = answer.text
    return texts
