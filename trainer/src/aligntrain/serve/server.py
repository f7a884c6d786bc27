"""The server process: load the model, listen, serve, stop."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from alignshared import AlignError, InputError
from aligntrain.inference.load import load_for_inference, model_folder, model_name
from aligntrain.serve.app import make_app
from aligntrain.serve.engine import Engine
from aligntrain.serve.images import Fetcher
from aligntrain.serve.service import Prompter, Service
from aligntrain.serve.settings import Settings

log = logging.getLogger(__name__)

GRACE = 10
"""Seconds that answers have to end in when the server stops."""


class Connection(H11Protocol):
    """uvicorn's connection with a time limit of `head_seconds` for an idle client.

    uvicorn waits forever for a first request and for the rest of a started header, so silent
    clients could exhaust the server's connections.
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
        """Start the time limit while no request is being answered."""
        if self.cycle and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._silence is None:
            self._silence = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None


class Server:
    """Serves the model in `folder` over HTTP. It listens at once and answers once loaded.

    `fetcher` replaces how images are fetched.

    Raises:
        InputError: the model does not exist, or the port is taken.
    """

    def __init__(
        self, folder: str | Path, settings: Settings, *, fetcher: Fetcher | None = None
    ) -> None:
        place = model_folder(folder).resolve()
        self.name = settings.name or model_name(folder, place)
        if settings.api_key is None and not settings.local:
            log.warning("everybody who reaches %s may ask; give an API key.", settings.host)
        self._place = place
        self._settings = settings
        if fetcher is None and settings.image_urls:
            fetcher = Fetcher(size=settings.limits.body)
        self._service = Service(self.name, settings.limits, fetcher)
        app = make_app(self._service, settings)
        self._socket = _bound(settings.host, settings.port)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`, SIGINT or SIGTERM; `ready` is called once the model is loaded.

        Running requests get GRACE seconds to finish.

        Raises:
            InputError: the model cannot be loaded, or has no such level.
            AlignError: the engine's thread died.
        """
        log.info("%s listens, and loads %s.", self.url, self.name)
        loader = threading.Thread(target=self._load, args=(ready,), daemon=True)
        with self._stopped_by_signals():
            loader.start()
            self._uvicorn.run(sockets=[self._socket])
        self._service.close()
        if isinstance(self._failure, AlignError):
            raise self._failure
        if self._failure is not None:
            raise AlignError(
                f"the server stopped, for its model failed ({self._failure}); start it again."
            ) from self._failure

    def stop(self) -> None:
        """Make `run` return; thread-safe."""
        self._uvicorn.should_exit = True

    def _load(self, ready: Callable[[], None]) -> None:
        service, limits = self._service, self._settings.limits
        try:
            model, processor = load_for_inference(self._place, device=self._settings.device)
            prompter = Prompter(model, processor, limits, self._settings.level)
            engine = Engine(
                model,
                processor,
                rows=limits.rows,
                total_tokens=limits.total_tokens,
                metrics=service.metrics,
                died=self._fail,
            )
            service.load(prompter, engine.start(), _knows(self._place))
        except BaseException as error:  # noqa: BLE001 - `run` raises it in its own thread
            self._fail(error)
        else:
            ready()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self.stop()

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Stop on signals; uvicorn re-raises captured signals when it is done."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kept = {
            one: signal.signal(one, lambda *_: self.stop())
            for one in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for one, handler in kept.items():
                signal.signal(one, handler)


def _knows(folder: Path) -> str | None:
    """What the card of the model in `folder` says that it knows, in its first sentence."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    _, _, part = text.partition("\n## What it knows\n")
    sentence, stop, _ = " ".join(part.partition("\n\n#")[0].split()).partition(". ")
    return sentence + stop.strip() or None


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise InputError(
            f"{host}:{port} cannot be listened on ({error}); give another --host or --port."
        ) from error
