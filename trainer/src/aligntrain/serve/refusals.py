"""What a client is told when it gets no answer, in the form that OpenAI's clients know."""

from typing import Any

_TYPES = {
    401: "authentication_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class Refusal(Exception):
    """A request that is not answered: an HTTP status, and one sentence that says why.

    `code` is OpenAI's word for it, where there is one; `param` names the part of the request;
    `retry_after` says in how many seconds to come again; with `final` it is said that the same
    request would end the same, since OpenAI's clients send it twice more after 408 and 5xx.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.final = final

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        error = {
            "message": self.sentence,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.final:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers
