"""`/v1/chat/completions` and `/v1/completions`: from a request to its response."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from aligntrain.serve.grammar import Grammar
from aligntrain.serve.protocol import APIError, ChatRequest, CompletionRequest
from aligntrain.serve.request import Event, Failed, Finished, Prompt, Request
from aligntrain.serve.responses import ChatReply, Choice, Reply, TextReply, event
from aligntrain.serve.service import Service

T = TypeVar("T")
Asked = ChatRequest | CompletionRequest

LATE = 30.0
"""Seconds beyond the timeout in which a client must have read what was written for it."""

_DRAINED = 10
"""A body of up to so many times the limit is read to its end and dropped, since a client that is
still sending does not see the response.
"""


class Events:
    """The events of a request's answers, passed from the engine's thread to the event loop.

    Each comes with the place of its answer among them.
    """

    def __init__(self, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.arrived = self._loop.time()
        self.deadline = self.arrived + timeout

    def emit(self, place: int, event: Event) -> None:
        """Add `event` of the answer at `place`; thread-safe."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (place, event))

    async def next(self) -> tuple[int, Event]:
        """Wait for the next event; raise APIError if the request failed or timed out."""
        try:
            async with asyncio.timeout_at(self.deadline):
                place, event = await self._queue.get()
        except TimeoutError as error:
            raise _too_late() from error
        if isinstance(event, Failed):
            raise APIError(503, event.sentence, final=event.final)
        return place, event


@dataclass(frozen=True)
class Completions:
    """ASGI application that answers requests of one kind with the model of `service`."""

    service: Service
    kind: type[ChatRequest] | type[CompletionRequest]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, requests = self.service, self.service.metrics.requests
        events = Events(service.limits.timeout)
        with ExitStack() as held:  # slot and rows, until the response has been sent
            try:
                response = await self._response(HTTPRequest(scope, receive), events, held)
            except APIError as error:
                response = error.response
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it; the metrics count it
            except Exception:
                requests.labels("500").inc()  # which the application's handler sends
                raise
            requests.labels(str(response.status_code)).inc()
            with suppress(TimeoutError):  # the client does not read
                async with asyncio.timeout_at(events.deadline + LATE):
                    await response(scope, receive, send)

    async def _response(self, request: HTTPRequest, events: Events, held: ExitStack) -> Response:
        held.enter_context(self.service.slot())
        try:
            async with asyncio.timeout_at(events.deadline):
                body = _body(request, self.service.limits.body)
                return await _unless_gone(request, self._answer(await body, events, held))
        except TimeoutError as error:
            raise _too_late() from error

    async def _answer(self, body: bytes, events: Events, held: ExitStack) -> Response:
        """The response, made after prefill so that earlier errors keep their HTTP status."""
        service = self.service
        asked, grammar = await service.read(body, self.kind)
        prompts = await service.prompts(asked)
        requests = _requests(asked, prompts, grammar, events)
        reply = _reply(service.name, asked, prompts)
        stream, options = asked.stream, asked.stream_options
        # The images' text, of which there may be megabytes, is not kept while the answer comes.
        del body, asked, prompts
        for request in requests:
            held.callback(request.cancel)
        service.submit(*requests)
        begun = await events.next()
        seconds = asyncio.get_running_loop().time() - events.arrived
        service.metrics.first_token.observe(seconds)
        choices = [Choice() for _ in requests]
        told = _told(events, begun, choices)
        if stream:
            return StreamingResponse(
                _stream(told, choices, reply, usage=bool(options and options.include_usage)),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        async for _ in told:
            pass
        return JSONResponse(reply.whole(choices))


def _requests(
    asked: Asked,
    prompts: Sequence[tuple[Prompt, int]],
    grammar: Grammar | None,
    events: Events,
) -> list[Request]:
    """The engine's requests: of each prompt as many as there are choices."""
    return [
        Request(
            prompt,
            partial(events.emit, at * asked.choices + choice),
            new_tokens,
            asked.sampling.of_choice(choice),
            tuple(asked.stop or ()),
            asked.likeliest,
            grammar and grammar.copy(),
        )
        for at, (prompt, new_tokens) in enumerate(prompts)
        for choice in range(asked.choices)
    ]


def _reply(name: str, asked: Asked, prompts: Sequence[tuple[Prompt, int]]) -> Reply:
    most, limit = asked.max_new_tokens, min(new_tokens for _, new_tokens in prompts)
    options: dict[str, Any] = {"logprobs": asked.likeliest is not None}
    if most is not None and most > limit:
        options["warnings"] = [
            f"{most} new tokens are asked for, and the answer has at most {limit}: the server's "
            "limit, or what the model's context has room for."
        ]
    tokens = sum(len(prompt.input_ids) for prompt, _ in prompts)
    if isinstance(asked, CompletionRequest):
        return TextReply(name, tokens, **options)
    return ChatReply(name, tokens, gate=bool(asked.gate), **options)


async def _told(
    events: Events, begun: tuple[int, Event], choices: Sequence[Choice]
) -> AsyncIterator[tuple[int, Event]]:
    """The events from `begun` on until all `choices` are whole, each added to its own."""
    left = len(choices)
    place, news = begun
    while True:
        choices[place].add(news)
        yield place, news
        left -= isinstance(news, Finished)
        if not left:
            return
        place, news = await events.next()


async def _stream(
    told: AsyncIterator[tuple[int, Event]], choices: Sequence[Choice], reply: Reply, *, usage: bool
) -> AsyncIterator[str]:
    """The server-sent events of the answers."""
    try:
        async for place, news in told:
            yield event(reply.chunk(place, news, choices[place]))
    except APIError as error:
        yield event(error.body)
        return
    if usage:
        yield event(reply.usage(choices))
    yield "data: [DONE]\n\n"


async def _body(request: HTTPRequest, most: int) -> bytes:
    """Read a JSON body of at most `most` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Not least since a page from elsewhere may send other types without asking.
    if kind != "application/json":
        raise APIError(415, f"the content type is {kind or 'not given'}; send application/json.")
    too_large = APIError(413, f"the body has more than {most:,} bytes; send less.")
    length = request.headers.get("content-length", "")
    known = int(length) if length.isdecimal() else 0
    if known > most * _DRAINED or (known > most and "expect" in request.headers):
        raise too_large
    body = bytearray()
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most * _DRAINED:
            raise too_large
        if max(size, known) <= most:
            body += piece
    if max(size, known) > most:
        raise too_large
    return bytes(body)


async def _unless_gone(request: HTTPRequest, work: Awaitable[T]) -> T:
    """Await `work`, cancelled if the client disconnects; the body must have been read before."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _too_late() -> APIError:
    return APIError(408, "the answer was not ready in time; ask for less, or come again later.",
                   code="timeout", final=True)  # fmt: skip
