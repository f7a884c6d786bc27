"""Between the engine's thread and the event loop: the events of one job, while its client waits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from aligntrain.serve.protocol import DONE, Refusal, Reply, failure
from aligntrain.serve.request import Begun, Ended, Event, Failed, Job, Piece, Prompt, Sampling
from aligntrain.serve.service import Place

T = TypeVar("T")

LATE = 30.0
"""Seconds beyond the timeout in which a client must have read what was written for it."""


class ClientGone(Exception):
    """Nobody waits for the response any more."""


class Events:
    """A job's events, waited for in the event loop; `deadline` is the loop's time."""

    def __init__(self, job: Job, queue: "asyncio.Queue[Event]", deadline: float) -> None:
        self.job = job
        self._queue = queue
        self.deadline = deadline

    @classmethod
    def of(
        cls, prompt: Prompt, new_tokens: int, sampling: Sampling, stops: tuple[str, ...],
        deadline: float,
    ) -> "Events":  # fmt: skip
        """Those of a new job, which is for the engine to begin."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, event)

        return cls(Job(prompt, tell, new_tokens, sampling, stops), queue, deadline)

    async def next(self) -> Begun | Piece | Ended:
        """The next one.

        Raises:
            Refusal: the job has failed, or took too long.
        """
        try:
            async with asyncio.timeout_at(self.deadline):
                event = await self._queue.get()
        except TimeoutError as error:
            raise too_late() from error
        if isinstance(event, Failed):
            raise Refusal(503, event.sentence, final=event.final)
        return event

    async def rest(self) -> tuple[str, Ended]:
        """All that is yet to come, as one text."""
        pieces: list[str] = []
        while not isinstance(event := await self.next(), Ended):
            if isinstance(event, Piece):
                pieces.append(event.text)
        return "".join(pieces), event


def too_late() -> Refusal:
    """What a client is told that had to wait too long."""
    return Refusal(408, "the answer was not ready in time; ask for less, or come again later.",
                   code="timeout", final=True)  # fmt: skip


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives, which stops when the client goes away.

    The body of the request must have been read.

    Raises:
        ClientGone: it went.
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


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class AnswerStream(StreamingResponse):
    """The events of an answer as they come. Whatever ends it, the job ends with it and its place
    is free.
    """

    def __init__(
        self, events: Events, begun: Begun, reply: Reply, place: Place, *, usage: bool
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
            self._events.job.cancelled = True
            self._place.leave()

    async def _written(self) -> AsyncIterator[str]:
        reply = self._reply
        yield reply.first(self._begun.gate_weights)
        try:
            while not isinstance(event := await self._events.next(), Ended):
                if isinstance(event, Piece):
                    yield reply.piece(event.text)
        except Refusal as refusal:
            yield failure(refusal)
            return
        yield reply.last(event.reason)
        if self._usage:
            yield reply.usage(event.tokens)
        yield DONE
