"""Questions answered many at a time; `chat`, which writes one answer as it comes, asks alike."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig

from alignshared import InputError

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that waits for its next turn.

    `messages` are what `processor.apply_chat_template` takes, pictures inside; `level`, 1 to N,
    takes that level's vector in the place of the mix; `name` is what an error calls it.
    """

    messages: Messages
    level: int | None = None
    name: str = "the conversation"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote.

    `gate_weights` are the N - 1 weights of the local levels, None where no gate spoke: without a
    picture, with a forced level, with a mixing without a gate. `tokens` counts what was written,
    the token that ends it included; `finished` says that it ended by itself and not for
    want of tokens.
    """

    text: str
    gate_weights: list[float] | None
    tokens: int
    finished: bool


def generate_answers(
    model: Any,
    processor: Any,
    questions: Iterable[Question],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 1,
    temperature: float = 0.0,
    shorten: bool = False,
) -> Iterator[Answer]:
    """The answer to each of `questions`, in their order, `batch_size` of them at a time.

    With `temperature` 0 each token is the likeliest, and in float32 the texts are the same at any
    batch size; in 16 bits a near tie may fall otherwise. Batches are padded on the left, each row
    counting its own positions. Questions are taken as they are needed. With `shorten`, a question
    that leaves no room for `max_new_tokens` is answered in as many as there is room for.

    Raises:
        InputError: the numbers cannot be; or, when its turn comes, a question is too long for the
            model, or has a level that does not exist or no picture to put it before.
    """
    # Not itself a generator: numbers that cannot be show at the call.
    settings = generation_settings(model, processor, max_new_tokens, temperature)
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} cannot be: give 1 or more.")
    model.eval()

    def answers() -> Iterator[Answer]:
        waiting = iter(questions)
        while batch := list(islice(waiting, batch_size)):
            yield from _batch(model, processor, batch, settings, shorten)

    return answers()


def captions_only(processor: Any) -> bool:
    """Whether the model is pretrained and no more: it says what a picture shows."""
    return processor.template == "plain"


def model_inputs(
    model: Any, processor: Any, conversations: Sequence[Messages]
) -> dict[str, torch.Tensor]:
    """What `generate` takes for `conversations`, on the model's device, padded on the left."""
    batch = processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding_side": "left"},
    )
    return dict(batch.to(model.device, dtype=model.dtype))


def generation_settings(
    model: Any, processor: Any, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """How to write: until the model's own end, or that of a caption where it writes no more.

    Raises:
        InputError: the numbers cannot be.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise InputError(
            f"max_new_tokens {max_new_tokens} or temperature {temperature} cannot be: give 1 "
            "or more, and 0 or more."
        )
    tokenizer = processor.tokenizer
    ends = model.generation_config.eos_token_id
    stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}
    if captions_only(processor):
        # A caption was learned with the line feed behind it, and nothing more.
        stops.add(tokenizer("a\n", add_special_tokens=False).input_ids[-1])
    sampled = temperature > 0
    # What is not said here, `generate` takes from the model: Qwen's, for one, penalises repetition.
    greedy = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        temperature=temperature or None,
        eos_token_id=sorted(stop for stop in stops if stop is not None),
        pad_token_id=tokenizer.pad_token_id,
        **({} if sampled else greedy),
    )


def check_questions(
    model: Any,
    processor: Any,
    inputs: dict[str, torch.Tensor],
    levels: Sequence[int | None],
    max_new_tokens: int,
) -> None:
    """Raise InputError unless the model can answer each row of `inputs` with its level."""
    config = model.config
    limit = _positions(model)
    pictured = (inputs["input_ids"] == config.image_token_id).any(dim=1).tolist()
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    for level, has_picture, length in zip(levels, pictured, lengths, strict=True):
        if not has_picture and (level is not None or captions_only(processor)):
            captions = "this model only captions pictures"
            what = captions if level is None else "a level is that of a picture"
            raise InputError(f"{what}, and there is none; give one as image.")
        if level is not None and not config.has_table:
            raise InputError("the model has mixing none and no levels; leave the level out.")
        if level is not None and not 1 <= level <= config.levels:
            raise InputError(f"there is no level {level}; give one from 1 to {config.levels}.")
        if limit and length + max_new_tokens > limit:
            raise InputError(
                f"the conversation has {length} tokens, and with {max_new_tokens} new ones it is "
                f"longer than the {limit} that the model reads; begin a new one, or ask for fewer."
            )


@contextmanager
def capture_gate(model: Any, tell: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """`tell` the gate's weights [B, N-1] float32 at each step of `model` that has any."""

    def hear(_module: Any, _arguments: Any, output: Any) -> None:
        if output.gate_weights is not None:
            tell(output.gate_weights.float())

    hook = model.register_forward_hook(hear)
    try:
        yield
    finally:
        hook.remove()


def _batch(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    settings: GenerationConfig,
    shorten: bool,
) -> list[Answer]:
    """Those with a forced level are read together, and so are those for which the gate speaks."""
    answers: dict[int, Answer] = {}
    for forced in (True, False):
        places = [i for i, one in enumerate(questions) if (one.level is not None) == forced]
        if places:
            together = [questions[i] for i in places]
            said = _together(model, processor, together, settings, shorten)
            answers |= zip(places, said, strict=True)
    return [answers[i] for i in range(len(questions))]


def _room(
    model: Any, inputs: dict[str, torch.Tensor], questions: Sequence[Question], most: int
) -> int:
    """How many new tokens, up to `most`, the model can read behind each of `questions`.

    Raises:
        InputError: none behind one of them.
    """
    limit = _positions(model)
    if limit is None:
        return most
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    for question, length in zip(questions, lengths, strict=True):
        if length >= limit:
            raise InputError(
                f"{question.name} has {length} tokens, and with an answer is longer than the "
                f"{limit} that the model reads; leave it out, or take a model that reads more."
            )
    return min(most, limit - max(lengths))


def _positions(model: Any) -> int | None:
    return getattr(model.config.text_config, "max_position_embeddings", None)


def _together(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    settings: GenerationConfig,
    shorten: bool,
) -> Iterator[Answer]:
    inputs = model_inputs(model, processor, [question.messages for question in questions])
    most = settings.max_new_tokens or 0
    if shorten and (room := _room(model, inputs, questions, most)) < most:
        if len(questions) > 1:  # apart, so that each has its own room, as in a batch of one
            for question in questions:
                yield from _together(model, processor, [question], settings, shorten)
            return
        most, settings = room, copy(settings)
        settings.max_new_tokens = room
    levels = [question.level for question in questions]
    check_questions(model, processor, inputs, levels, most)
    if levels[0] is not None:
        inputs["levels"] = torch.tensor(levels, device=model.device)
    heard: list[torch.Tensor] = []
    with capture_gate(model, heard.append):
        ids = model.generate(**inputs, generation_config=settings)
    written: list[list[int]] = ids[:, inputs["input_ids"].shape[1] :].tolist()
    stops: Any = settings.eos_token_id
    # The gate speaks at the first step, of rows that have a picture.
    weights = heard[0].tolist() if heard else [[0.0]] * len(written)
    for row, of_gate in zip(written, weights, strict=True):
        end = next((i for i, token in enumerate(row) if token in stops), None)
        text = processor.tokenizer.decode(row[:end], skip_special_tokens=True).strip()
        tokens = len(row) if end is None else end + 1
        yield Answer(text, of_gate if any(of_gate) else None, tokens, end is not None)
