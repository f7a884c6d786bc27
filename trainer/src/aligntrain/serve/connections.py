"""Connections that say nothing are closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """One of uvicorn's, closed when `head_seconds` have passed in which no request is being
    answered and none has come with its whole head.

    Uvicorn waits without end for a first request, and for the rest of a head that has begun; who
    opens connections and says nothing would take all that the server may have.
    """

    head_seconds = 20.0

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._await_head()

    def handle_events(self) -> None:
        super().handle_events()
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _await_head(self) -> None:
        """Have the time run while no request is being answered, from when that began."""
        if self.cycle and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._silence is None:
            self._silence = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
