"""The body of a chat request: OpenAI's fields that are honoured here, and two of ours."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import from_json

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


_IGNORED = frozenset(
    {
        "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier",
        "store", "user",
    }
)  # fmt: skip
"""What changes nothing in an answer."""

_ONLY: dict[str, Any] = {
    "audio": None, "frequency_penalty": 0, "function_call": "none", "functions": [],
    "logit_bias": {}, "logprobs": False, "modalities": ["text"], "n": 1, "presence_penalty": 0,
    "reasoning_effort": "none", "response_format": {"type": "text"}, "tool_choice": "none",
    "tools": [], "top_logprobs": 0, "verbosity": "medium", "web_search_options": None,
}  # fmt: skip
"""What OpenAI's API has and this server has not, with the one value that asks for nothing."""

MOST_VALUES = 50_000
"""Values in a request's JSON, at whatever depth: some ten thousand messages. A body of the usual
limit holds millions of empty ones, and the whole server stands still while they are looked at.
"""

_MOST_ERRORS = 100
"""Those of a request with more are not told apart, as each would be made a text."""


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Part):
    """Words."""

    type: Literal["text"]
    text: str


class ImageAddress(_Part):
    """Where a picture is: a `data:` URL, or an http one. `detail` changes nothing."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Part):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


Nothing = Annotated[None, BeforeValidator(lambda given: given or None)]
"""What may be there if it is empty."""


class Message(BaseModel):
    """A turn. What else a client says of it, as it does of answers that it sends back, is left;
    but not calls of tools, without which the conversation would be another.
    """

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], FailFast(), BeforeValidator(_as_parts)]
    tool_calls: Nothing = None
    function_call: Nothing = None

    @property
    def text(self) -> str:
        """All its words."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def image_urls(self) -> list[str]:
        """Where its pictures are, in their order."""
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


class StreamOptions(BaseModel):
    """What a stream says beside the answer; `include_obfuscation` changes nothing."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class ChatRequest(BaseModel):
    """What `/v1/chat/completions` takes.

    `level`, 1 to N, takes that level's vector in the place of the gate's mix; `gate` asks for the
    gate's weights. What is null is as if it were left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[Stop] | None, BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
    ] = Field(None, max_length=4)
    level: int | None = None
    gate: bool | None = None

    @property
    def image_urls(self) -> list[str]:
        """Where the pictures are, in reading order."""
        return [url for message in self.messages for url in message.image_urls]

    @property
    def warmth(self) -> float:
        """The temperature: OpenAI's 1 where the client says no more than how to draw, and 0 where
        it says nothing, for which each token is the likeliest, as `aligntrain chat` has it.
        """
        if self.temperature is None:
            return 0.0 if self.top_p is None and self.seed is None else 1.0
        return self.temperature

    @property
    def usage(self) -> bool:
        """Whether a stream is to end with the count of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the answer may have, None where the client leaves it open."""
        return self.max_completion_tokens or self.max_tokens


def read_request(body: bytes) -> ChatRequest:
    """The request in `body`.

    Raises:
        Refusal: it is no JSON, or asks for what is not here.
    """
    try:
        given = from_json(body)
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON ({error}).", code="invalid_json") from error
    if not isinstance(given, dict):
        raise Refusal(400, "the body is no JSON object; send one with model and messages.")
    for name, only in _ONLY.items():
        if given.get(name) not in (None, only):
            raise Refusal(
                400,
                f"{name} is not supported here; leave it out.",
                code="unsupported_parameter",
                param=name,
            )
    _check_count(given)
    known = {k: v for k, v in given.items() if k not in _ONLY and k not in _IGNORED}
    try:
        return ChatRequest.model_validate(known)
    except ValidationError as error:
        raise _refused(error) from error


def _check_count(given: dict[str, Any]) -> None:
    count, left = 0, [given]
    while left:
        one: Any = left.pop()
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        count += len(inner)
        if count > MOST_VALUES:
            raise Refusal(
                400,
                f"the request has more than {MOST_VALUES:,} values in it; send less.",
                code="invalid_value",
            )
        left += inner


def _refused(error: ValidationError) -> Refusal:
    """The first thing that is wrong, with its place in the request."""
    if error.error_count() > _MOST_ERRORS:
        return Refusal(
            400, f"more than {_MOST_ERRORS} things are wrong with the request; send what "
            "/v1/chat/completions takes.", code="invalid_value",
        )  # fmt: skip
    first = error.errors(include_url=False, include_input=False)[0]
    place = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        return Refusal(
            400, f"there is no parameter {place}.", code="unknown_parameter", param=place
        )
    if first["type"] == "none_required":
        return Refusal(
            400, f"{place} is not supported here; leave it out.", code="unsupported_parameter",
            param=place,
        )  # fmt: skip
    said = first["msg"].removeprefix("Value error, ")[:300]  # it may quote what was sent
    return Refusal(400, f"{place} cannot be: {said}.", code="invalid_value", param=place)


def _place(location: Sequence[str | int]) -> str:
    """`messages[0].content[1].text` of its steps; the type of a part, which pydantic names before
    the part's fields, is left out.
    """
    path = ""
    for at, step in enumerate(location):
        if isinstance(step, int):
            path += f"[{step}]"
        elif at < 4 or location[at - 2] != "content":
            path += f".{step}" if path else step
    return path[:200]


DONE = "data: [DONE]\n\n"
"""What ends a stream."""


def event(data: dict[str, Any]) -> str:
    """`data` as one server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Reply:
    """The parts of one answer; `gate` says whether the gate's weights go with it."""

    def __init__(self, model: str, prompt_tokens: int, *, gate: bool) -> None:
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._shows_gate = gate
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(
        self, text: str, reason: str, tokens: int, weights: list[float] | None
    ) -> dict[str, Any]:
        """The body of a response that does not stream."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": reason,
            "logprobs": None,
        }
        return self._object("chat.completion", [choice]) | {
            "usage": self._usage(tokens),
            **self._gate(weights),
        }

    def first(self, weights: list[float] | None) -> str:
        """The event that begins a stream."""
        begun = self._chunk({"role": "assistant", "content": ""}) | self._gate(weights)
        return event(begun)

    def piece(self, text: str) -> str:
        """The event with more of the answer."""
        return event(self._chunk({"content": text}))

    def last(self, reason: str) -> str:
        """The event that says why the answer ends."""
        return event(self._chunk({}, reason))

    def usage(self, tokens: int) -> str:
        """The event that counts tokens."""
        counted = self._object("chat.completion.chunk", [])
        return event(counted | {"usage": self._usage(tokens)})

    def _gate(self, weights: list[float] | None) -> dict[str, Any]:
        return {"gate": weights} if self._shows_gate else {}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
        }


def failure(refusal: Refusal) -> str:
    """The event that ends a stream which cannot go on."""
    return event(refusal.body)
