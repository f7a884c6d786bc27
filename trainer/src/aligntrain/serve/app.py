"""HTTP routes and access control."""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligntrain.serve.protocol import APIError, ChatRequest, ResponseBuilder
from aligntrain.serve.request import Sampling
from aligntrain.serve.service import Service, Slot
from aligntrain.serve.settings import is_loopback
from aligntrain.serve.streaming import AnswerStream, ClientGone, Events, too_late, unless_gone

_GUARDED = ("/v1/", "/metrics")
"""Not guarded are the page, which knows nothing, and /health, which tells nothing."""

_HEADERS = {
    # The page is all its own: nothing from elsewhere, nothing inline, in no frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def refuse(refusal: APIError) -> JSONResponse:
    """The error response for `error`."""
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


class Access:
    """Middleware that checks the API key and, for a local server, the Host header.

    The Host check stops DNS rebinding: a web page cannot reach the server through a name of its
    own.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, local: bool) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._access_error(scope)
        app: Any = self._app if refusal is None else refuse(refusal)
        await app(scope, receive, with_headers)

    def _access_error(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        if self._key is None:
            if self._local and not _is_local(headers.get("host", "")):
                return APIError(
                    403, "without an API key this server answers on localhost alone; start it with "
                    "one to reach it by another name.",
                )  # fmt: skip
            return None
        if not str(scope["path"]).startswith(_GUARDED):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        known = secrets.compare_digest(given.strip().encode("utf-8", "replace"), self._key)
        if known and scheme.lower() == "bearer":
            return None
        return APIError(401, "the API key is missing or wrong; send Authorization: Bearer KEY.",
                       code="invalid_api_key")  # fmt: skip


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return is_loopback(name.removeprefix("[").removesuffix("]"))


STATIC = Path(__file__).with_name("static")

_DRAINED = 10
"""A body of up to so many times the limit is read to its end and dropped, since a client that is
still sending does not see the response.
"""


def make_app(service: Service, *, api_key: str | None = None, local: bool = True) -> Starlette:
    """The ASGI application of `service`; see `Access` for the other arguments."""
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/health", _health),
            Route("/metrics", _metrics),
            Route("/v1/models", _models),
            Route("/v1/models/{name:path}", _model),
            Route("/v1/chat/completions", _chat, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Access, api_key=api_key, local=local)],
        exception_handlers={HTTPException: _http_error, Exception: _broken},
    )
    app.state.service = service
    return app


async def _page(_: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


async def _health(request: Request) -> Response:
    ready = _service(request).loaded is not None
    status = "ready" if ready else "loading"
    return JSONResponse({"status": status}, 200 if ready else 503)


async def _metrics(request: Request) -> Response:
    text = _service(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _models(request: Request) -> Response:
    loaded = _service(request).loaded
    return JSONResponse({"object": "list", "data": [] if loaded is None else [loaded.card]})


async def _model(request: Request) -> Response:
    loaded, name = _service(request).loaded, request.path_params["name"]
    if loaded is None or name != loaded.card["id"]:
        return refuse(APIError(404, f"there is no model {name!r} here.", code="model_not_found"))
    return JSONResponse(loaded.card)


async def _chat(request: Request) -> Response:
    service = _service(request)
    try:
        response = await _answered(request, service)
    except APIError as refusal:
        response = refuse(refusal)
    except (ClientGone, ClientDisconnect):
        response = Response(status_code=499)  # nobody reads it; the metrics count it
    except Exception:
        service.metrics.requests.labels("500").inc()  # which `_broken` says
        raise
    service.metrics.requests.labels(str(response.status_code)).inc()
    return response


async def _answered(request: Request, service: Service) -> Response:
    place = service.take_slot()
    deadline = asyncio.get_running_loop().time() + service.limits.timeout
    streams = False
    try:
        try:
            async with asyncio.timeout_at(deadline):
                body = await _body(request, service.limits.body)
                asked, prompt, new_tokens = await unless_gone(request, service.prompt(body))
        except TimeoutError as error:
            raise too_late() from error
        events = Events.of(prompt, new_tokens, _sampling(asked), tuple(asked.stop or ()), deadline)
        reply = ResponseBuilder(service.name, len(prompt.input_ids), gate=bool(asked.gate))
        form = Form(stream=bool(asked.stream), usage=asked.usage)
        # The images' text, of which there may be megabytes, is not kept while the answer comes.
        del body, asked
        response = await _begun(request, service, form, events, reply, place)
        streams = isinstance(response, AnswerStream)
        return response
    finally:
        if not streams:
            place.leave()


@dataclass(frozen=True, slots=True)
class Form:
    """Response format: streamed or not, with or without token counts."""

    stream: bool
    usage: bool


async def _begun(
    request: Request,
    service: Service,
    form: Form,
    events: Events,
    reply: ResponseBuilder,
    place: Slot,
) -> Response:
    """The response, made after prefill so that earlier errors keep their HTTP status."""
    assert service.loaded is not None
    service.loaded.engine.submit(events.request)
    streams = False
    try:
        begun: Any = await unless_gone(request, events.next())
        service.metrics.first_token.observe(monotonic() - place.arrived)
        if form.stream:
            streams = True
            return AnswerStream(events, begun, reply, place, usage=form.usage)
        text, ended = await unless_gone(request, events.rest())
        return JSONResponse(reply.whole(text, ended.reason, ended.tokens, begun.gate_weights))
    finally:
        if not streams:
            events.request.cancelled = True


async def _body(request: Request, most: int) -> bytes:
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


def _sampling(asked: ChatRequest) -> Sampling:
    top_p = 1.0 if asked.top_p is None else asked.top_p
    return Sampling(asked.effective_temperature, top_p, asked.seed)


async def _http_error(_: Request, error: Any) -> Response:
    """Unknown paths and methods, in the format of all errors."""
    sentence = {404: "there is nothing at this path.", 405: "this path has other methods."}
    said = sentence.get(error.status_code, f"{error.detail}.")
    response = refuse(APIError(error.status_code, said))
    with suppress(AttributeError):
        response.headers.update(error.headers or {})
    return response


async def _broken(_: Request, __: Exception) -> Response:
    return refuse(APIError(500, "the server failed at this request; its log says how."))


def _service(request: Request) -> Service:
    return request.app.state.service
