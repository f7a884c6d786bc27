"""Answer many questions in batches; `chat` and `serve` share its checks and settings."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig

from alignshared import InputError
from aligntrain.inference.steering import check_guidance, check_steering
from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligntrain.model.modeling import AlignGPTOutput

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Question:
    """Conversation ending with a question.

    `messages` are those of `processor.apply_chat_template`, images included; `level`, 1 to N,
    forces that level's vector instead of the mix; `name` is used in errors.
    """

    messages: Messages
    level: int | None = None
    name: str = "the conversation"


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of the model.

    `gate_weights` are the N - 1 weights of the local levels, None if no gate took part: no image, a
    forced level, or a mixing without a gate. `tokens` counts the generated tokens, the end token
    included; `finished` is False if the limit of new tokens cut the answer off.
    """

    text: str
    gate_weights: list[float] | None
    tokens: int
    finished: bool


def generate_answers(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    questions: Iterable[Question],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 1,
    temperature: float = 0.0,
    guidance: float = 1.0,
    shorten: bool = False,
) -> Iterator[Answer]:
    """Iterate over the answers to `questions`, in order, generated `batch_size` at a time.

    With `temperature` 0 decoding is greedy. In float32 the texts are then the same at any batch
    size; in 16 bits a near tie may be decided differently. Questions are read as they are needed.
    `guidance` is classifier-free guidance by the level (arXiv 2306.17806): each step decodes from
    plain + guidance * (level - plain), log-probabilities without and with the level's vector (or
    the mix). 1 is none; any other value takes twice as long. With `shorten`, a question that leaves
    no room for `max_new_tokens` gets a shorter limit.

    Raises:
        InputError: a number is out of range; or, when its batch is due, a question is too long for
            the model, has a level that does not exist, or a level or guidance but no image.
    """
    # Not a generator itself, so that invalid numbers fail at the call.
    settings = generation_settings(model, processor, max_new_tokens, temperature, guidance)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1 (got {batch_size}).")
    model.eval()

    def answers() -> Iterator[Answer]:
        remaining = iter(questions)
        while batch := list(islice(remaining, batch_size)):
            answered: dict[int, Answer] = {}
            for forced in (True, False):  # generated apart: a forced level, and a mix
                rows = [i for i, asked in enumerate(batch) if (asked.level is not None) == forced]
                if rows:
                    part = [batch[i] for i in rows]
                    generated = _generate(model, processor, part, settings, shorten)
                    answered |= zip(rows, generated, strict=True)
            yield from (answered[i] for i in range(len(batch)))

    return answers()


def messages_of(text: str, images: Iterable[Any] = ()) -> Messages:
    """Return the conversation of one question `text` about `images`."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def captions_only(processor: AlignGPTProcessor) -> bool:
    """Return whether the model is only pretrained: it captions images but answers no questions."""
    return processor.template == "plain"


def model_inputs(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    conversations: Sequence[Messages],
    padding_side: str = "left",
) -> dict[str, torch.Tensor]:
    """Return the inputs for `conversations` on the model's device; generation pads left."""
    batch = processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding_side": padding_side},
    )
    return dict(batch.to(model.device, dtype=model.dtype))  # casts pixel_values, not ids


def generation_settings(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    max_new_tokens: int,
    temperature: float,
    guidance: float = 1.0,
) -> GenerationConfig:
    """Return the decoding settings: stop at the model's own end, or at the end of a caption.

    Raises:
        InputError: a number is out of range.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise InputError(
            f"max_new_tokens must be at least 1 (got {max_new_tokens}), and temperature at least 0 "
            f"(got {temperature})."
        )
    check_guidance(guidance)
    tokenizer = processor.tokenizer
    ends: int | list[int] | None = model.generation_config.eos_token_id
    stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}  # pyright: ignore[reportUnhashable]
    if captions_only(processor):
        # Captions are trained to end with a line feed.
        stops.add(tokenizer("a\n", add_special_tokens=False).input_ids[-1])
    sampled = temperature > 0
    # `generate` takes anything unset from the model: Qwen's, for one, penalises repetition.
    greedy = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        temperature=temperature or None,
        guidance_scale=guidance,
        eos_token_id=sorted(stop for stop in stops if stop is not None),
        pad_token_id=tokenizer.pad_token_id,
        **({} if sampled else greedy),
    )


def check_questions(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    inputs: dict[str, torch.Tensor],
    levels: Sequence[int | None],
    max_new_tokens: int,
    guidance: float = 1.0,
) -> None:
    """Raise InputError unless the model can answer each row of `inputs` with its level."""
    config = model.config
    limit = max_positions(model)
    has_images = (inputs["input_ids"] == config.image_token_id).any(dim=1).tolist()
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    for level, has_image, length in zip(levels, has_images, lengths, strict=True):
        problems = {
            "a level is that of an image": level is not None,
            "guidance is by the level of an image": guidance != 1,
            "this model only captions images": captions_only(processor),
        }
        problem = next((said for said, given in problems.items() if given), None)
        if problem is not None and not has_image:
            raise InputError(f"{problem}, and there is none; give one as image.")
        check_steering(config, level, guidance)
        if limit and length + max_new_tokens > limit:
            raise InputError(
                f"the conversation has {length} tokens, and with {max_new_tokens} new ones it is "
                f"longer than the {limit} that the model reads; begin a new one, or ask for fewer."
            )


@contextmanager
def capture_gate(
    model: AlignGPTForConditionalGeneration, receive: Callable[[torch.Tensor], None]
) -> Iterator[None]:
    """Call `receive` with the gate's weights [B, N-1] float32 at each step that has any."""

    def hook(_module: Any, _arguments: Any, output: AlignGPTOutput) -> None:
        if output.gate_weights is not None:
            receive(output.gate_weights.float())

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def max_positions(model: AlignGPTForConditionalGeneration) -> int | None:
    """Return the tokens that the LLM reads, or None if unlimited."""
    return getattr(model.config.text_config, "max_position_embeddings", None)


def _generate(
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    questions: Sequence[Question],
    settings: GenerationConfig,
    shorten: bool,
) -> Iterator[Answer]:
    inputs = model_inputs(model, processor, [question.messages for question in questions])
    most, limit = settings.max_new_tokens or 0, max_positions(model)
    lengths: list[int] = inputs["attention_mask"].sum(dim=1).tolist()
    if shorten and limit is not None and max(lengths) + most > limit:
        for question, length in zip(questions, lengths, strict=True):
            if length >= limit:
                raise InputError(
                    f"{question.name} has {length} tokens, and with an answer is longer than the "
                    f"{limit} that the model reads; leave it out, or take a model that reads more."
                )
        if len(questions) > 1:  # one by one: a shared limit would depend on the batch
            for question in questions:
                yield from _generate(model, processor, [question], settings, shorten)
            return
        most, settings = limit - lengths[0], copy(settings)
        settings.max_new_tokens = most
    levels = [question.level for question in questions]
    check_questions(model, processor, inputs, levels, most, settings.guidance_scale or 1.0)
    if levels[0] is not None:
        inputs["levels"] = torch.tensor(levels, device=model.device)
    captured: list[torch.Tensor] = []
    with capture_gate(model, captured.append):
        ids = model.generate(**inputs, generation_config=settings)
    new_ids: list[list[int]] = ids[:, inputs["input_ids"].shape[1] :].tolist()
    stops: Any = settings.eos_token_id
    # The gate runs at the first step, [B, N-1]; its weights are zero in rows without an image.
    weights = captured[0].tolist() if captured else [[0.0]] * len(new_ids)
    for row, gate_weights in zip(new_ids, weights, strict=True):
        end = next((i for i, token in enumerate(row) if token in stops), None)
        text = str(processor.tokenizer.decode(row[:end], skip_special_tokens=True)).strip()
        tokens = len(row) if end is None else end + 1
        yield Answer(text, gate_weights if any(gate_weights) else None, tokens, end is not None)
