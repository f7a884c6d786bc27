"""`/v1/chat/completions`: from a request's body to its response, streamed or whole."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from aligntrain.serve.protocol import APIError, ResponseBuilder, event
from aligntrain.serve.request import Event, Failed, Finished, PrefillDone, Request, TextDelta
from aligntrain.serve.service import Service

T = TypeVar("T")

LATE = 30.0
"""Seconds beyond the timeout in which a client must have read what was written for it."""

_DRAINED = 10
"""A body of up to so many times the limit is read to its end and dropped, since a client that is
still sending does not see the response.
"""


class Events:
    """The events of one request, passed from the engine's thread to the event loop."""

    def __init__(self, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self.arrived = self._loop.time()
        self.deadline = self.arrived + timeout

    def emit(self, event: Event) -> None:
        """Add `event`; thread-safe."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def next(self) -> PrefillDone | TextDelta | Finished:
        """Wait for the next event; raise APIError if the request failed or timed out."""
        try:
            async with asyncio.timeout_at(self.deadline):
                event = await self._queue.get()
        except TimeoutError as error:
            raise _too_late() from error
        if isinstance(event, Failed):
            raise APIError(503, event.sentence, final=event.final)
        return event


@dataclass(frozen=True)
class ChatCompletions:
    """ASGI application that answers chat requests with the model of `service`."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, requests = self.service, self.service.metrics.requests
        events = Events(service.limits.timeout)
        with ExitStack() as held:  # slot and row, until the response has been sent
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
        asked, prompt, new_tokens = await service.prompt(body)
        request = Request(prompt, events.emit, new_tokens, asked.sampling, tuple(asked.stop or ()))
        reply = ResponseBuilder(service.name, len(prompt.input_ids), gate=bool(asked.gate))
        stream, options = asked.stream, asked.stream_options
        # The images' text, of which there may be megabytes, is not kept while the answer comes.
        del body, asked
        held.callback(request.cancel)
        service.submit(request)
        begun: Any = await events.next()
        seconds = asyncio.get_running_loop().time() - events.arrived
        service.metrics.first_token.observe(seconds)
        if stream:
            return StreamingResponse(
                _stream(events, begun, reply, usage=bool(options and options.include_usage)),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        text = ""
        while not isinstance(event := await events.next(), Finished):
            text += event.text if isinstance(event, TextDelta) else ""
        return JSONResponse(reply.whole(text, event.reason, event.tokens, begun.gate_weights))


async def _stream(
    events: Events, begun: PrefillDone, reply: ResponseBuilder, *, usage: bool
) -> AsyncIterator[str]:
    """The server-sent events of an answer."""
    yield event(reply.first(begun.gate_weights))
    try:
        while not isinstance(news := await events.next(), Finished):
            if isinstance(news, TextDelta):
                yield event(reply.chunk({"content": news.text}))
    except APIError as error:
        yield event(error.body)
        return
    yield event(reply.chunk({}, news.reason))
    if usage:
        yield event(reply.usage(news.tokens))
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
