"""State shared by the requests for one model."""

import asyncio
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from time import monotonic, time
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from alignshared import InputError
from aligntrain.inference.generate import captions_only, check_questions
from aligntrain.prompts.placeholders import IMAGE_MARK, join, tokenize_pieces
from aligntrain.serve.engine import Engine
from aligntrain.serve.images import Fetcher, FetchError, decode, from_data_url, is_data_url, refused
from aligntrain.serve.metrics import Metrics
from aligntrain.serve.protocol import APIError, ChatRequest, Message, read_request
from aligntrain.serve.request import Prompt
from aligntrain.serve.settings import Limits


class Prompter:
    """Builds prompts for one model; thread-safe."""

    def __init__(self, model: Any, processor: Any, limits: Limits) -> None:
        self._model = model
        self._processor = processor
        self._limits = limits
        self._captions_only = captions_only(processor)
        context = getattr(model.config.text_config, "max_position_embeddings", None)
        self._context: int | None = context
        self._longest_token = max(map(len, processor.tokenizer.get_vocab()))

    @property
    def max_prompt_tokens(self) -> int | None:
        """Maximum tokens of a prompt, images included, or None if unlimited."""
        limits = (self._limits.prompt_tokens, self._context)
        return min((limit for limit in limits if limit is not None), default=None)

    def prompt(self, request: ChatRequest, images: Iterable[Image.Image]) -> tuple[Prompt, int]:
        """Build the model's input and the maximum number of new tokens.

        `images` are the request's, in reading order. They are consumed one at a time, and only
        after everything else has been checked, so that one decoded image is held in memory at
        once.

        Raises:
            APIError: the prompt is too long or unsupported by this model.
        """
        import torch

        self._check_texts(request.messages)
        messages = request.messages[-1:] if self._captions_only else request.messages
        try:
            inputs = self._row(messages)
            length = inputs["input_ids"].shape[1]
            new_tokens = self._new_tokens(request, length)
            check_questions(self._model, self._processor, inputs, [request.level], new_tokens)
        except InputError as error:
            raise APIError(400, str(error), code="invalid_value") from error
        except TemplateError as error:
            raise APIError(
                400, f"the model's chat template refuses these messages: {error}.", param="messages"
            ) from error
        pixels = [*map(self._pixels, images)]
        # A model that only captions reads the last message alone.
        seen = pixels[len(pixels) - sum(len(one.image_urls) for one in messages) :]
        ids: list[int] = inputs["input_ids"][0].tolist()
        return Prompt(ids, torch.cat(seen) if seen else None, request.level), new_tokens

    def _row(self, messages: Sequence[Message]) -> dict[str, Any]:
        """`input_ids` and `attention_mask` [1, T] int64 of `messages`."""
        import torch

        processor = self._processor
        text = processor.apply_chat_template(
            [_turn(one) for one in messages], add_generation_prompt=True
        )
        ids = join(tokenize_pieces(processor.tokenizer, text), processor.layout)
        return {name: torch.tensor(rows) for name, rows in processor.pad_rows([ids]).items()}

    def _pixels(self, image: Image.Image) -> Any:
        return self._processor.pixel_values([image])

    def _check_texts(self, messages: Sequence[Message]) -> None:
        for place, message in enumerate(messages):
            where = f"messages[{place}]"
            if IMAGE_MARK in message.text:
                raise APIError(
                    400,
                    f"{where} holds the mark {IMAGE_MARK}, which stands for an image by itself; "
                    "leave it out and give the image as a part of type image_url.",
                    param=where,
                )
            if message.role != "user" and message.image_urls:
                raise APIError(
                    400, f"{where} is the {message.role}'s and has an image; only the user's may.",
                    param=where,
                )  # fmt: skip
        if messages[-1].role != "user":
            raise APIError(400, "the last message is not the user's; end with one.",
                          param="messages")  # fmt: skip
        most = self.max_prompt_tokens
        if most is None:
            return
        # Before any of it is tokenized: no token is longer than the longest one.
        least = sum(len(m.text) for m in messages) / self._longest_token
        if max(least, len(messages)) > most:
            raise _too_long(f"more than {most}", most)

    def _new_tokens(self, request: ChatRequest, length: int) -> int:
        """Maximum tokens of the answer to a prompt of `length` tokens."""
        limits, most = self._limits, self.max_prompt_tokens
        if most is not None and length > most:
            raise _too_long(str(length), most)
        room = limits.new_tokens
        if self._context is not None:
            room = min(room, self._context - length)
        asked = request.max_new_tokens
        if asked is not None and asked > limits.new_tokens:
            raise APIError(
                400,
                f"{asked} new tokens are asked for, and the server writes at most "
                f"{limits.new_tokens}; ask for fewer.",
                code="invalid_value",
                param="max_completion_tokens" if request.max_completion_tokens else "max_tokens",
            )
        if (asked or 1) > room:
            raise _too_long(f"{length} and {asked or 1} new", self._context or most or 0)
        return asked or room


def _turn(message: Message) -> dict[str, Any]:
    """Convert `message` to the processor's format."""
    role = "system" if message.role == "developer" else message.role
    marks = [{"type": "image"} for _ in message.image_urls]
    return {"role": role, "content": [*marks, {"type": "text", "text": message.text}]}


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


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model: its engine and its prompter."""

    engine: Engine
    prompter: Prompter
    card: dict[str, Any]

    @classmethod
    def of(cls, model: Any, processor: Any, name: str, limits: Limits, engine: Engine) -> "Loaded":
        """Serve `model` through `engine` as `name`."""
        config = model.config
        prompter = Prompter(model, processor, limits)
        card: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": int(time()),
            "owned_by": "aligntrain",
            "levels": config.levels if config.has_table else None,
            "mixing": config.mixing,
            "gate": config.has_gate,
            "captions_only": captions_only(processor),
            "max_prompt_tokens": prompter.max_prompt_tokens,
            "max_new_tokens": limits.new_tokens,
            "max_images": limits.images,
            "max_body_bytes": limits.body,
        }
        return cls(engine, prompter, card)


class Slot:
    """A request's place in the queue."""

    def __init__(self, service: "Service") -> None:
        self._service: Service | None = service
        self.arrived = monotonic()

    def leave(self) -> None:
        """Free the slot; further calls do nothing."""
        if self._service is not None:
            self._service.left(monotonic() - self.arrived)
            self._service = None


class Service:
    """Admits requests while there is room and builds their prompts.

    `loaded` is None until the model is loaded. Used from one event loop only.
    """

    def __init__(self, name: str, limits: Limits, fetcher: Fetcher | None = None) -> None:
        self.name = name
        self.limits = limits
        self.metrics = Metrics()
        self.loaded: Loaded | None = None
        self._fetcher = fetcher
        self._in_flight = 0
        self._mean_seconds = 1.0
        self._fetching = asyncio.Semaphore(FETCHING)
        # Few, so that few large images are in memory at once.
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "aligntrain-prompts")

    def take_slot(self) -> Slot:
        """Reserve a slot.

        Raises:
            APIError: the model is still loading, or the queue is full.
        """
        if self.loaded is None:
            raise APIError(503, "the model is still being loaded; come again later.", retry_after=5)
        limits = self.limits
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
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        return Slot(self)

    def left(self, seconds: float) -> None:
        """Record that a request took `seconds`."""
        self._in_flight -= 1
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self.metrics.in_flight.set(self._in_flight)
        self.metrics.seconds.observe(seconds)

    async def prompt(self, body: bytes) -> tuple[ChatRequest, Prompt, int]:
        """Parse `body` into the request, its prompt and its maximum number of new tokens.

        Raises:
            APIError: the request is invalid.
        """
        loaded = self.loaded
        assert loaded is not None, "only who has a place asks"
        run = asyncio.get_running_loop().run_in_executor
        request = await run(self._pool, self._read, body)

        def make(fetched: Sequence[bytes | None]) -> tuple[Prompt, int]:
            images = (  # decoded when they are asked for, as each may have a hundred megabytes
                decode(_bytes(url, data, place), self.limits.pixels, place)
                for place, url, data in zip(
                    _places(request), request.image_urls, fetched, strict=True
                )
            )
            return loaded.prompter.prompt(request, images)

        if all(map(is_data_url, request.image_urls)):
            return request, *await run(self._pool, make, [None] * len(request.image_urls))
        async with self._fetching:
            fetched = await self._fetched(request.image_urls, self.limits.body)
            return request, *await run(self._pool, make, fetched)

    def close(self) -> None:
        """Stop building prompts."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, body: bytes) -> ChatRequest:
        request = read_request(body)
        if request.model != self.name:
            raise APIError(
                404,
                f"there is no model {request.model[:200]!r} here; it is {self.name!r}.",
                code="model_not_found",
                param="model",
            )
        count, most = len(request.image_urls), self.limits.images
        if count > most:
            raise APIError(
                400,
                f"the request has {count} images, and the limit is {most}; send fewer.",
                code="too_many_images",
                param="messages",
            )
        for place, url in zip(_places(request), request.image_urls, strict=True):
            if not is_data_url(url) and self._fetcher is None:
                raise refused(
                    place, "is at an address, and this server fetches none; send it as a data URL"
                )
        return request

    async def _fetched(self, urls: Sequence[str], left: int) -> list[bytes | None]:
        """Fetch the http addresses among `urls` in turn, at most `left` bytes in total."""
        fetched: list[bytes | None] = []
        for url in urls:
            if is_data_url(url) or self._fetcher is None:
                fetched.append(None)
                continue
            try:
                data = await self._fetcher.fetch(url, left)
            except FetchError as error:
                raise refused(f"{url[:200]}", str(error)) from error
            left -= len(data)
            fetched.append(data)
        return fetched


def _bytes(url: str, fetched: bytes | None, place: str) -> bytes:
    return from_data_url(url, place) if fetched is None else fetched


def _places(request: ChatRequest) -> list[str]:
    """The location of each image in the request."""
    return [
        f"messages[{i}].content[{j}]"
        for i, message in enumerate(request.messages)
        for j, part in enumerate(message.content)
        if part.type == "image_url"
    ]
