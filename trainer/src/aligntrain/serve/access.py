"""Who may ask, and what every response says to a browser."""

import secrets
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligntrain.serve.refusals import Refusal
from aligntrain.serve.settings import is_loopback

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


def refuse(refusal: Refusal) -> JSONResponse:
    """The response that says `refusal`."""
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


class Access:
    """Lets through who knows the key, and where the server is only for this machine (`local`),
    requests that were meant for it: a page from elsewhere whose name now leads here is not.
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

        refusal = self._refusal(scope)
        app: Any = self._app if refusal is None else refuse(refusal)
        await app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if self._key is None:
            if self._local and not _is_local(headers.get("host", "")):
                return Refusal(
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
        return Refusal(401, "the API key is missing or wrong; send Authorization: Bearer KEY.",
                       code="invalid_api_key")  # fmt: skip


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return is_loopback(name.removeprefix("[").removesuffix("]"))
