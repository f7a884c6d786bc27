"""HTTP routes and access control."""

import secrets
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligntrain.serve.completions import Completions
from aligntrain.serve.protocol import APIError, ChatRequest, CompletionRequest
from aligntrain.serve.service import Service
from aligntrain.serve.settings import Settings, is_loopback

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

STATIC = Path(__file__).with_name("static")


@dataclass(frozen=True)
class Access:
    """Middleware that checks the API key and, for a local server, the Host header.

    The Host check stops DNS rebinding: a web page cannot reach the server through a name of its
    own. `hosts` are names that are let through.
    """

    app: ASGIApp
    _: KW_ONLY
    api_key: str | None
    local: bool
    hosts: tuple[str, ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        error = self._error(scope)
        app = self.app if error is None else error.response
        await app(scope, receive, with_headers)

    def _error(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        if self.api_key is None:
            name = _host_name(headers.get("host", ""))
            if self.local and not is_loopback(name) and name.lower() not in self.hosts:
                return APIError(
                    403, "without an API key this server answers on localhost alone; start it with "
                    "one, or with --allow-host and the name, to reach it by another name.",
                )  # fmt: skip
            return None
        if not str(scope["path"]).startswith(_GUARDED):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("utf-8", "replace")
        known = secrets.compare_digest(sent, self.api_key.encode())
        if known and scheme.lower() == "bearer":
            return None
        return APIError(401, "the API key is missing or wrong; send Authorization: Bearer KEY.",
                       code="invalid_api_key")  # fmt: skip


def _host_name(host: str) -> str:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.removeprefix("[").removesuffix("]")


def _middleware(settings: Settings) -> list[Middleware]:
    access = Middleware(
        Access,
        api_key=settings.api_key and settings.api_key.strip(),
        local=settings.local,
        hosts=tuple(host.lower() for host in settings.hosts),
    )
    # Outside of the access control, as a preflight request has no key.
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["Retry-After", "x-should-retry"],
    )
    return [cors, access] if settings.origins else [access]


def make_app(service: Service, settings: Settings) -> Starlette:
    """The ASGI application of `service`."""

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def health(_: Request) -> Response:
        ready = service.card is not None
        return JSONResponse({"status": "ready" if ready else "loading"}, 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        media_type = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.metrics.text(), media_type=media_type)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [service.card] if service.card else []})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if service.card is None or name != service.name:
            error = APIError(404, f"there is no model {name!r} here.", code="model_not_found")
            return error.response
        return JSONResponse(service.card)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", Completions(service, ChatRequest), methods=["POST"]),
            Route("/v1/completions", Completions(service, CompletionRequest), methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=_middleware(settings),
        exception_handlers={HTTPException: _http_error, Exception: _broken},
    )


async def _http_error(_: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the format of all errors."""
    assert isinstance(error, HTTPException)
    sentence = {404: "there is nothing at this path.", 405: "this path has other methods."}
    said = sentence.get(error.status_code, f"{error.detail}.")
    response = APIError(error.status_code, said).response
    response.headers.update(error.headers or {})
    return response


async def _broken(_: Request, __: Exception) -> Response:
    return APIError(500, "the server failed at this request; its log says how.").response
