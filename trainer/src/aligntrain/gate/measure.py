"""What the gate says of questions about pictures: a forward pass of the prompt, without the LLM."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from PIL import Image

from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.loader import Preparation, collate
from aligntrain.data.samples import Row, Sample, decode_sample_image, make_sample
from aligntrain.evaluate.short_answers import LONGEST_ANSWER, is_right, is_short
from aligntrain.gate.questions import Case
from aligntrain.inference.generate import Question, generate_answers
from aligntrain.prompts.conversation import InvalidSample, Turn
from aligntrain.prompts.placeholders import IMAGE_MARK

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A case with its picture."""

    case: Case
    picture: Image.Image

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt, as a processor's chat template takes it."""
        text = self.case.question.replace(IMAGE_MARK, " ")  # a caption may hold the mark
        content = [{"type": "image", "image": self.picture}, {"type": "text", "text": text}]
        system = self.case.system
        before = [] if system is None else [{"role": "system", "content": system}]
        return [*before, {"role": "user", "content": content}]


def with_pictures(
    shards: ShardedDataset, cases: Sequence[Case], unread: list[Case]
) -> Iterator[Asked]:
    """`cases` with their pictures; those whose picture cannot be decoded are added to `unread`."""
    for case in cases:
        image = shards.row(case.row).image
        try:
            yield Asked(case, decode_sample_image(image or b""))
        except InvalidSample:
            unread.append(case)


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one perhaps shorter."""
    while batch := list(islice(items, size)):
        yield batch


@torch.inference_mode()
def gate_weights(model: Any, processor: Any, asked: Sequence[Asked]) -> torch.Tensor:
    """Weights [B, N-1] float32 that the gate of `model` gives the local levels for each prompt.

    They come out of what is put before the LLM, which itself is not run. Prompts are padded on the
    right and the gate reads no padding, so that they do not depend on the batch but for rounding.
    """
    batch = processor.apply_chat_template(
        [one.messages for one in asked],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding_side": "right"},
    ).to(model.device, dtype=model.dtype)
    _, weights = model.model.embed(
        batch["input_ids"], batch["attention_mask"], batch["pixel_values"]
    )
    return weights.float().cpu()


CAPTION_PROMPT = "Give a short caption."
"""What is asked about a pair, whose caption is the answer that is wanted."""

_MAX_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Swept:
    """What became of one case: of each setting (None for the model's own mix, or a level) the loss
    of the reference answer in nats a token, and, where the reference is short, what was said and
    whether it is right.
    """

    number: int
    losses: dict[int | None, float]
    said: dict[int | None, str]
    right: dict[int | None, bool]


@torch.inference_mode()
def sweep_levels(
    model: Any,
    processor: Any,
    asked: Iterator[tuple[int, Asked]],
    *,
    batch_size: int,
    done: Callable[[int], None],
) -> Iterator[Swept]:
    """Each of the numbered cases `asked`, with every level forced and with the model's own mix.

    The mix is that of the prompt alone, as at inference, also where the model was trained with
    `gate_text` full. Cases that are too long for the model are left out. `done` hears how many of
    the cases of a batch are behind it.
    """
    settings = (None, *range(1, model.config.levels + 1))
    preparation = _preparation(model, processor)
    for batch in batches(asked, batch_size):
        usable = [
            (number, one, sample) for number, one in batch for sample in _sample(one, preparation)
        ]
        if usable:
            numbers, ones, samples = (list(column) for column in zip(*usable, strict=True))
            losses = _losses(model, processor, ones, samples, preparation, settings)
            said = _answers(model, processor, ones, settings, batch_size)
            for place, (number, one) in enumerate(zip(numbers, ones, strict=True)):
                yield _swept(number, one, losses[place], said.get(place, {}))
        done(len(batch))


def _preparation(model: Any, processor: Any) -> Preparation:
    most = getattr(model.config.text_config, "max_position_embeddings", None) or _MAX_LENGTH
    length = min(_MAX_LENGTH, most)
    return Preparation.of(processor, template=processor.template, max_length=length)


def _sample(asked: Asked, preparation: Preparation) -> Iterator[Sample]:
    """The question with its reference answer, as training would see it; nothing if it is too long
    for that. Of a pair the caption is asked for.
    """
    case = asked.case
    question, reference = (
        (CAPTION_PROMPT, case.question) if case.answer is None else (case.question, case.answer)
    )
    turns = (Turn("human", question), Turn("gpt", reference))
    if case.system is not None:
        turns = (Turn("system", case.system), *turns)
    row = Row(case.id, b"+", reference, turns, case.level)  # the picture is decoded already
    try:
        yield make_sample(row, preparation.encoder)
    except InvalidSample:
        return


def _losses(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    samples: Sequence[Sample],
    preparation: Preparation,
    settings: Sequence[int | None],
) -> list[dict[int | None, float]]:
    pixels = [preparation.pixels(one.picture) for one in asked]
    batch = collate(samples, pixels, preparation.pad_id)
    given = {
        name: batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels")
    }
    pictures = batch["pixel_values"]
    assert pictures is not None  # every case has one
    given["pixel_values"] = pictures.to(model.device, dtype=model.dtype)
    own: dict[str, torch.Tensor] = {}
    if model.config.has_gate and processor.template != "plain":
        prompts = [_caption_asked(one) for one in asked]
        own["gate_weights"] = gate_weights(model, processor, prompts).to(model.device)
    found: list[dict[int | None, float]] = [{} for _ in asked]
    for setting in settings:
        forced = own if setting is None else {
            "levels": torch.full((len(asked),), setting, device=model.device)
        }  # fmt: skip
        output = model(**given, **forced)
        for place, loss in enumerate(output.sample_loss.tolist()):
            found[place][setting] = loss
    return found


def _caption_asked(asked: Asked) -> Asked:
    """`asked` as the sweep asks it: for the caption of a pair, not with it."""
    if asked.case.answer is not None:
        return asked
    return Asked(replace(asked.case, question=CAPTION_PROMPT), asked.picture)


def _answers(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    settings: Sequence[int | None],
    batch_size: int,
) -> dict[int, dict[int | None, str]]:
    """What is said to the cases with a short reference, by their place in `asked`."""
    places = [place for place, one in enumerate(asked) if is_short(one.case.answer)]
    wanted = [(place, setting) for setting in settings for place in places]
    questions = (Question(asked[place].messages, setting) for place, setting in wanted)
    answers = generate_answers(
        model, processor, questions, max_new_tokens=LONGEST_ANSWER, batch_size=batch_size
    )
    found: dict[int, dict[int | None, str]] = {place: {} for place in places}
    for (place, setting), one in zip(wanted, answers, strict=True):
        found[place][setting] = one.text
    return found


def _swept(
    number: int, asked: Asked, losses: dict[int | None, float], said: dict[int | None, str]
) -> Swept:
    reference = asked.case.answer or ""
    right = {setting: is_right(text, reference) for setting, text in said.items()}
    return Swept(number, losses, said, right)
