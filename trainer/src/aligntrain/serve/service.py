"""State shared by the requests for one model."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import ceil
from time import monotonic, time
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image

from alignshared import InputError
from aligntrain.inference.generate import (
    captions_only,
    check_questions,
    generation_settings,
    max_positions,
)
from aligntrain.inference.steering import check_steering
from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligntrain.prompts.placeholders import IMAGE_MARK, join, take_level, tokenize_pieces
from aligntrain.serve.engine import Engine
from aligntrain.serve.grammar import Grammar, Grammars
from aligntrain.serve.images import Fetcher, FetchError, decode, from_data_url, is_data_url, refused
from aligntrain.serve.metrics import Metrics
from aligntrain.serve.protocol import (
    APIError,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    R,
    read_request,
)
from aligntrain.serve.request import Prompt, Request
from aligntrain.serve.settings import Limits


class Prompter:
    """Builds prompts for one model; thread-safe.

    `level` is that of requests with an image that name none; InputError if the model lacks it.
    """

    def __init__(
        self,
        model: AlignGPTForConditionalGeneration,
        processor: AlignGPTProcessor,
        limits: Limits,
        level: int | None = None,
    ) -> None:
        check_steering(model.config, level)
        self._model = model
        self._processor = processor
        self._limits = limits
        self._level = level
        self._captions_only = captions_only(processor)
        ends: Any = generation_settings(model, processor, 1, 0.0).eos_token_id
        self._grammars = Grammars(processor.tokenizer, ends)
        self._context = max_positions(model)
        self._longest_token = max(map(len, processor.tokenizer.get_vocab()))
        limited = [most for most in (limits.prompt_tokens, self._context) if most is not None]
        self.max_prompt_tokens = min(limited, default=None)
        """Maximum tokens of a prompt, images included, or None if unlimited."""

    def card(self, name: str) -> dict[str, Any]:
        """The description of the model, called `name`, for `/v1/models`."""
        config, limits = self._model.config, self._limits
        return {
            "id": name,
            "object": "model",
            "created": int(time()),
            "owned_by": "aligntrain",
            "levels": config.levels if config.has_table else None,
            "mixing": config.mixing,
            "gate": config.has_gate,
            "level": self._level,
            "captions_only": self._captions_only,
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_new_tokens": limits.new_tokens,
            "max_images": limits.images,
            "max_body_bytes": limits.body,
        }

    def prompt(self, request: ChatRequest, images: Iterable[Image.Image]) -> tuple[Prompt, int]:
        """Build the model's input and the maximum number of new tokens.

        `images` are the request's, in reading order. They are consumed one at a time, and only
        after everything else has been checked, so that one decoded image is held in memory at
        once.

        Raises:
            APIError: the prompt is too long or unsupported by this model.
        """
        self._check_texts(request.messages)
        processor = self._processor
        # A model that only captions reads the last message alone.
        messages = request.messages[-1:] if self._captions_only else request.messages
        turns = [_turn(message) for message in messages]
        try:
            text: str = processor.apply_chat_template(turns, add_generation_prompt=True)
            ids = join(tokenize_pieces(processor.tokenizer, text), processor.layout)
            new_tokens = self._new_tokens(request, len(ids))
            level, guidance = request.level, 1.0 if request.guidance is None else request.guidance
            written, _ = take_level(messages[-1].text)
            level = level if written is None else written
            if level is None and processor.image_token_id in ids:
                level = self._level
            self._check(ids, level, guidance, new_tokens)
        except InputError as error:
            raise APIError(400, str(error), code="invalid_value") from error
        except TemplateError as error:
            raise APIError(
                400, f"the model's chat template refuses these messages: {error}.", param="messages"
            ) from error
        pixels = [*map(self._pixels, images)]
        seen = pixels[len(pixels) - sum(len(message.images) for message in messages) :]
        together = torch.cat(seen) if seen else None
        return Prompt(ids, together, level, guidance), new_tokens

    def grammar(self, request: GenerationRequest) -> Grammar | None:
        """Return what answers to `request` may be, or None if they may be any text.

        Raises:
            APIError: they cannot be held to its schema.
        """
        schema = request.schema_of_answers
        if schema is None:
            return None
        try:
            return self._grammars.of(schema)
        except InputError as error:
            raise APIError(
                400, str(error), code="invalid_value", param="response_format"
            ) from error

    def completions(self, request: CompletionRequest) -> list[tuple[Prompt, int]]:
        """Build the model's input and the maximum number of new tokens for each text prompt.

        Raises:
            APIError: a prompt is empty, too long, or unsupported by this model.
        """
        return [
            self._completion(request, prompt, f"prompt[{place}]")
            for place, prompt in enumerate(request.prompts)
        ]

    def _completion(
        self, request: CompletionRequest, prompt: str | list[int], where: str
    ) -> tuple[Prompt, int]:
        processor = self._processor
        if isinstance(prompt, str):
            self._check_length(len(prompt))
            _check_marks(prompt, where)
            prompt = tokenize_pieces(processor.tokenizer, prompt)[0]
        if not prompt:
            raise APIError(400, f"{where} is empty; give some text.", param="prompt")
        try:
            ids = join([prompt], processor.layout)
            new_tokens = self._new_tokens(request, len(ids))
            self._check(ids, None, 1.0, new_tokens)
        except InputError as error:
            raise APIError(400, str(error), code="invalid_value", param="prompt") from error
        return Prompt(ids), new_tokens

    def _check(self, ids: list[int], level: int | None, guidance: float, new_tokens: int) -> None:
        row = torch.tensor([ids])  # [1, T]
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        check_questions(self._model, self._processor, inputs, [level], new_tokens, guidance)

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        return self._processor.pixel_values([image])

    def _check_texts(self, messages: Sequence[Message]) -> None:
        for place, message in enumerate(messages):
            where = f"messages[{place}]"
            _check_marks(message.text, where)
            if message.role != "user" and message.images:
                raise APIError(
                    400, f"{where} is the {message.role}'s and has an image; only the user's may.",
                    param=where,
                )  # fmt: skip
        if messages[-1].role != "user":
            raise APIError(400, "the last message is not the user's; end with one.",
                          param="messages")  # fmt: skip
        self._check_length(sum(len(m.text) for m in messages), len(messages))

    def _check_length(self, characters: int, messages: int = 1) -> None:
        """Refuse too long a text before it is tokenized: no token exceeds the longest one."""
        most = self.max_prompt_tokens
        if most is not None and max(characters / self._longest_token, messages) > most:
            raise _too_long(f"more than {most}", most)

    def _new_tokens(self, request: GenerationRequest, length: int) -> int:
        """Maximum tokens of the answer to a prompt of `length` tokens."""
        limits, most = self._limits, self.max_prompt_tokens
        if most is not None and length > most:
            raise _too_long(str(length), most)
        room = limits.new_tokens
        if self._context is not None:
            room = min(room, self._context - length)
        if room < 1:
            raise _too_long(f"{length} and 1 new", self._context or most or 0)
        return min(request.max_new_tokens or room, room)


def _turn(message: Message) -> dict[str, Any]:
    """Convert `message` to the processor's format, without the level that it begins with."""
    role = "system" if message.role == "developer" else message.role
    marks = [{"type": "image"} for _ in message.images]
    text = take_level(message.text)[1] if role == "user" else message.text
    return {"role": role, "content": [*marks, {"type": "text", "text": text}]}


def _check_marks(text: str, where: str) -> None:
    if IMAGE_MARK in text:
        raise APIError(
            400,
            f"{where} holds the mark {IMAGE_MARK}, which stands for an image by itself; "
            "leave it out and give the image as a part of type image_url of a message.",
            param=where,
        )


def _too_long(length: str, most: int) -> APIError:
    return APIError(
        400,
        f"the conversation has {length} tokens, and the limit is {most}; begin a new one, or ask "
        "for fewer.",
        code="context_length_exceeded",
        param="messages",
    )


FETCHING = 4
"""Requests whose images are fetched at once; those of each are in memory until it is read."""


class Service:
    """Admits requests and builds their prompts, in one event loop; `card` is None until loaded."""

    def __init__(self, name: str, limits: Limits, fetcher: Fetcher | None = None) -> None:
        self.name = name
        self.limits = limits
        self.metrics = Metrics()
        self.card: dict[str, Any] | None = None
        self._fetcher = fetcher
        self._in_flight = 0
        self._mean_seconds = 1.0
        self._fetching = asyncio.Semaphore(FETCHING)
        # Few, so that few large images are in memory at once.
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "aligntrain-prompts")

    def load(self, prompter: Prompter, engine: Engine, knows: str | None = None) -> None:
        """Answer requests with `engine` from now on; `knows` says what about, on the page."""
        self._prompter, self._engine = prompter, engine
        self.card = {**prompter.card(self.name), "knows": knows}

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a place among the requests; raise APIError while loading or if the queue is full."""
        if self.card is None:
            raise APIError(503, "the model is still being loaded; come again later.", retry_after=5)
        limits, metrics = self.limits, self.metrics
        if self._in_flight >= limits.rows + limits.queue:
            # When those before it are through, if they take as long as the last ones did.
            turns = self._in_flight / limits.rows
            wait = min(60, max(1, ceil(turns * self._mean_seconds)))
            raise APIError(
                429,
                f"{limits.queue} requests are waiting already; come again in {wait} seconds.",
                code="rate_limit_exceeded",
                retry_after=wait,
            )
        arrived = monotonic()
        self._in_flight += 1
        metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            seconds = monotonic() - arrived
            self._in_flight -= 1
            self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
            metrics.in_flight.set(self._in_flight)
            metrics.seconds.observe(seconds)

    async def read(self, body: bytes, kind: type[R]) -> tuple[R, Grammar | None]:
        """Parse `body` into the request, and what its answers may be."""

        def read() -> tuple[R, Grammar | None]:
            request = self._read(body, kind)
            return request, self._prompter.grammar(request)

        return await asyncio.get_running_loop().run_in_executor(self._pool, read)

    async def prompts(self, request: ChatRequest | CompletionRequest) -> list[tuple[Prompt, int]]:
        """Build the prompts of `request`, each with its maximum number of new tokens."""
        if isinstance(request, ChatRequest):
            return [await self._chat_prompt(request)]
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._pool, self._prompter.completions, request)

    async def _chat_prompt(self, request: ChatRequest) -> tuple[Prompt, int]:
        run = asyncio.get_running_loop().run_in_executor
        remote = {place: url for place, url in request.images if not is_data_url(url)}

        def make(fetched: dict[str, bytes]) -> tuple[Prompt, int]:
            images = (  # decoded when they are asked for, as each may have a hundred megabytes
                decode(
                    fetched[place] if place in fetched else from_data_url(url, place),
                    self.limits.pixels,
                    place,
                )
                for place, url in request.images
            )
            return self._prompter.prompt(request, images)

        if not remote:
            return await run(self._pool, make, {})
        async with self._fetching:
            fetched = await self._fetched(remote, self.limits.body)
            return await run(self._pool, make, fetched)

    def submit(self, *requests: Request) -> None:
        """Have `requests` answered."""
        self._engine.submit(*requests)

    def close(self) -> None:
        """Stop answering and building prompts."""
        if self.card is not None:
            self._engine.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, body: bytes, kind: type[R]) -> R:
        request = read_request(body, kind)
        if request.model != self.name:
            raise APIError(
                404,
                f"there is no model {request.model[:200]!r} here; it is {self.name!r}.",
                code="model_not_found",
                param="model",
            )
        prompts = len(request.prompts) if isinstance(request, CompletionRequest) else 1
        answers, most = prompts * request.choices, self.limits.rows
        if answers > most:
            raise APIError(
                400,
                f"{answers} answers are asked for in one request, and the limit is {most}; ask for "
                "fewer.",
                code="invalid_value",
                param="n" if request.choices > 1 else "prompt",
            )
        if isinstance(request, ChatRequest):
            self._check_images(request)
        return request

    def _check_images(self, request: ChatRequest) -> None:
        count, most = len(request.images), self.limits.images
        if count > most:
            raise APIError(
                400,
                f"the request has {count} images, and the limit is {most}; send fewer.",
                code="too_many_images",
                param="messages",
            )
        for place, url in request.images:
            if not is_data_url(url) and self._fetcher is None:
                raise refused(
                    place, "is at an address, and this server fetches none; send it as a data URL"
                )

    async def _fetched(self, urls: dict[str, str], left: int) -> dict[str, bytes]:
        """Fetch the images at `urls`, by place, in turn: at most `left` bytes in total."""
        assert self._fetcher is not None, "`_read` refuses addresses without one"
        fetched: dict[str, bytes] = {}
        for place, url in urls.items():
            try:
                fetched[place] = await self._fetcher.fetch(url, left)
            except FetchError as error:
                raise refused(f"{url[:200]}", str(error)) from error
            left -= len(fetched[place])
        return fetched
