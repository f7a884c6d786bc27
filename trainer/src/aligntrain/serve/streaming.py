"""The events of one request, passed from the engine's thread to the event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import TypeVar

from starlette.requests import Request as HTTPRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from aligntrain.serve.protocol import DONE, APIError, ResponseBuilder, failure
from aligntrain.serve.request import (
    Event,
    Failed,
    Finished,
    PrefillDone,
    Prompt,
    Request,
    Sampling,
    TextDelta,
)
from aligntrain.serve.service import Slot

T = TypeVar("T")

LATE = 30.0
"""Seconds beyond the timeout in which a client must have read what was written for it."""


class ClientGone(Exception):
    """The client closed the connection."""


class Events:
    """The events of one request; `deadline` is in the event loop's time."""

    def __init__(self, request: Request, queue: "asyncio.Queue[Event]", deadline: float) -> None:
        self.request = request
        self._queue = queue
        self.deadline = deadline

    @classmethod
    def of(
        cls, prompt: Prompt, new_tokens: int, sampling: Sampling, stops: tuple[str, ...],
        deadline: float,
    ) -> "Events":  # fmt: skip
        """Submit a new request and return its events."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()

        def emit(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, event)

        return cls(Request(prompt, emit, new_tokens, sampling, stops), queue, deadline)

    async def next(self) -> PrefillDone | TextDelta | Finished:
        """Wait for the next event.

        Raises:
            APIError: the request failed or timed out.
        """
        try:
            async with asyncio.timeout_at(self.deadline):
                event = await self._queue.get()
        except TimeoutError as error:
            raise too_late() from error
        if isinstance(event, Failed):
            raise APIError(503, event.sentence, final=event.final)
        return event

    async def rest(self) -> tuple[str, Finished]:
        """Wait for the end and return the remaining text."""
        pieces: list[str] = []
        while not isinstance(event := await self.next(), Finished):
            if isinstance(event, TextDelta):
                pieces.append(event.text)
        return "".join(pieces), event


def too_late() -> APIError:
    """The error for a request that timed out."""
    return APIError(408, "the answer was not ready in time; ask for less, or come again later.",
                   code="timeout", final=True)  # fmt: skip


async def unless_gone(request: HTTPRequest, work: Awaitable[T]) -> T:
    """Await `work`, cancelled if the client disconnects.

    The request body must have been read before.

    Raises:
        ClientGone: the client disconnected.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: HTTPRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class AnswerStream(StreamingResponse):
    """Streams the events of an answer; cancels the request and frees its slot at the end."""

    def __init__(
        self,
        events: Events,
        begun: PrefillDone,
        reply: ResponseBuilder,
        place: Slot,
        *,
        usage: bool,
    ) -> None:
        self._events = events
        self._begun = begun
        self._reply = reply
        self._place = place
        self._usage = usage
        super().__init__(
            self._written(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        late = self._events.deadline + LATE
        try:
            with suppress(TimeoutError):  # it does not read
                async with asyncio.timeout_at(late):
                    await super().__call__(scope, receive, send)
        finally:
            self._events.request.cancelled = True
            self._place.leave()

    async def _written(self) -> AsyncIterator[str]:
        reply = self._reply
        yield reply.first(self._begun.gate_weights)
        try:
            while not isinstance(event := await self._events.next(), Finished):
                if isinstance(event, TextDelta):
                    yield reply.piece(event.text)
        except APIError as refusal:
            yield failure(refusal)
            return
        yield reply.last(event.reason)
        if self._usage:
            yield reply.usage(event.tokens)
        yield DONE
