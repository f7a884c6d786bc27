"""OpenAI's protocol: request bodies and errors."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    FailFast,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json
from starlette.responses import JSONResponse

from aligntrain.inference.steering import MOST_GUIDANCE
from aligntrain.serve.request import Sampling

_TYPES = {
    401: "authentication_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


@dataclass(eq=False)
class APIError(Exception):
    """An error response: an HTTP status and one sentence.

    `code` is OpenAI's error code, `param` the part of the request at fault, and `retry_after` the
    seconds until a retry makes sense. `final` tells OpenAI's clients not to retry: they would send
    the same request twice more after 408 and 5xx.
    """

    status: int
    sentence: str
    _: KW_ONLY
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    final: bool = False

    def __str__(self) -> str:
        return self.sentence

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        error = {
            "message": self.sentence,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def response(self) -> JSONResponse:
        """The HTTP response."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.final:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


T = TypeVar("T")
R = TypeVar("R", bound="GenerationRequest")

_IGNORED = {
    "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
"""Fields that are accepted and have no effect."""

_ONLY: dict[str, Any] = {
    "audio": None, "best_of": 1, "echo": False, "logit_bias": {}, "modalities": ["text"],
    "reasoning_effort": "none", "suffix": "", "verbosity": "medium", "web_search_options": None,
}  # fmt: skip
"""Unsupported fields, with the one value at which they have no effect."""

_TOOLS = {"tools": [], "functions": [], "tool_choice": "auto", "function_call": "auto"}
"""Fields about tools, with the value at which they ask for nothing; see `_check_tools`."""

_MOST_LOGPROBS = 20

MOST_VALUES = 50_000
"""Maximum values in a request's JSON, at any depth: some ten thousand messages. A body of the usual
size could hold millions of empty ones, and validating them would block the server.
"""

_MOST_ERRORS = 100
"""Requests with more errors get one general message, since each error would be formatted."""


class TextPart(BaseModel, extra="forbid", frozen=True):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageAddress(BaseModel, extra="forbid", frozen=True):
    """A `data:` or http URL of an image. `detail` is accepted and has no effect."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel, extra="forbid", frozen=True):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageAddress, BeforeValidator(lambda v: {"url": v} if isinstance(v, str) else v)
    ]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]

EmptyOnly = Annotated[None, BeforeValidator(lambda given: given or None)]
"""Accepted only when null or empty."""


class Message(BaseModel, frozen=True):
    """One chat message.

    Unknown fields are ignored, since clients echo back whole replies; tool calls are rejected,
    because dropping them would change the conversation.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part],
        FailFast(),
        BeforeValidator(lambda v: [{"type": "text", "text": v}] if isinstance(v, str) else v),
    ]
    tool_calls: EmptyOnly = None
    function_call: EmptyOnly = None

    @model_validator(mode="before")
    @classmethod
    def _without_content(cls, given: Any) -> Any:
        """An assistant's message may have no content, or null."""
        if isinstance(given, dict) and given.get("role") == "assistant":
            return {**given, "content": given.get("content") or []}
        return given

    @property
    def text(self) -> str:
        """All text parts, concatenated."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> list[tuple[int, str]]:
        """The index in `content` and the URL of each image, in order."""
        return [
            (i, part.image_url.url)
            for i, part in enumerate(self.content)
            if isinstance(part, ImagePart)
        ]


class StreamOptions(BaseModel):
    """Options of a stream. `include_obfuscation` is accepted and has no effect."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(BaseModel, extra="forbid", frozen=True):
    """Any text."""

    type: Literal["text"]


class JSONFormat(BaseModel, extra="forbid", frozen=True):
    """A JSON object."""

    type: Literal["json_object"]


class JSONSchema(BaseModel, extra="forbid", frozen=True):
    """A named schema. Answers always keep it, whatever `strict` is."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class SchemaFormat(BaseModel, extra="forbid", frozen=True):
    """JSON that keeps a schema."""

    type: Literal["json_schema"]
    json_schema: JSONSchema


Format = Annotated[TextFormat | JSONFormat | SchemaFormat, Field(discriminator="type")]

Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class GenerationRequest(BaseModel, extra="forbid", frozen=True):
    """The fields of both endpoints; `top_k` and `min_p` are vLLM's. Null counts as absent."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[Stop] | None, BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
    ] = Field(None, max_length=4)
    n: int | None = Field(None, ge=1)
    response_format: Format | None = None

    @property
    def schema_of_answers(self) -> dict[str, Any] | None:
        """The JSON Schema that answers keep, or None if they may be any text."""
        if isinstance(self.response_format, SchemaFormat):
            return self.response_format.json_schema.schema_ or {}
        return {"type": "object"} if isinstance(self.response_format, JSONFormat) else None

    @property
    def choices(self) -> int:
        """The answers asked for to each prompt."""
        return self.n or 1

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters.

        OpenAI's default temperature of 1 applies if the client asks for tokens to be drawn (by
        `top_p`, `top_k`, `min_p`, `seed`, or `n` above 1) and gives none; otherwise the default is
        greedy decoding, as in `aligntrain chat`.
        """
        temperature = self.temperature
        if temperature is None:
            drawn = self.choices > 1 or any(
                one is not None for one in (self.top_p, self.top_k, self.min_p, self.seed)
            )
            temperature = 1.0 if drawn else 0.0
        return Sampling(
            temperature,
            1.0 if self.top_p is None else self.top_p,
            self.seed,
            max(0, self.top_k or 0),
            self.min_p or 0.0,
            self.presence_penalty or 0.0,
            self.frequency_penalty or 0.0,
        )

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum tokens of the answer, or None if the client sets no limit."""
        return self.max_tokens


class ChatRequest(GenerationRequest, frozen=True):
    """The body of `/v1/chat/completions`.

    `level` (1 to N) replaces the gate's mix by that level's vector; `guidance` other than 1
    exaggerates what level or mix do; `gate` asks for the gate's weights.
    """

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS)
    level: int | None = None
    guidance: float | None = Field(None, gt=0, le=MOST_GUIDANCE)
    gate: bool | None = None

    @property
    def images(self) -> list[tuple[str, str]]:
        """The place in the request and the URL of each image, in reading order."""
        return [
            (f"messages[{i}].content[{j}]", url)
            for i, message in enumerate(self.messages)
            for j, url in message.images
        ]

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum tokens of the answer, or None if the client sets no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """Of how many tokens log-probabilities are told beside the answer's, or None."""
        return self.top_logprobs or 0 if self.logprobs or self.top_logprobs else None


def _not_empty(prompt: T) -> T:
    if prompt == []:
        raise ValueError("there is no prompt in it")
    return prompt


TokenId = Annotated[int, Field(ge=0, strict=True)]


class CompletionRequest(GenerationRequest, frozen=True):
    """The body of `/v1/completions`: prompts without images, which no chat template changes."""

    prompt: Annotated[
        str | list[TokenId] | list[str] | list[list[TokenId]], AfterValidator(_not_empty)
    ]
    logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS)

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as text or as ids."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return [prompt] if single else list(prompt)

    @property
    def likeliest(self) -> int | None:
        """Of how many tokens log-probabilities are told beside the answer's, or None."""
        return self.logprobs


def read_request(body: bytes, kind: type[R]) -> R:
    """Parse and validate the request in `body`; raise APIError if it asks for anything else."""
    try:
        given = from_json(body)
    except ValueError as error:
        raise APIError(400, f"the body is no JSON ({error}).", code="invalid_json") from error
    if not isinstance(given, dict):
        raise APIError(400, "the body is no JSON object; send one with the fields of a request.")
    for name, only in _ONLY.items():
        if given.get(name) not in (None, only):
            raise _unsupported(name)
    _check_tools(given)
    _check_count(given)
    unread = _ONLY.keys() | _TOOLS.keys() | _IGNORED
    try:
        return kind.model_validate({k: v for k, v in given.items() if k not in unread})
    except ValidationError as error:
        raise _refused(error) from error


def _check_tools(given: dict[str, Any]) -> None:
    """Refuse tools, unless the model is told to call none."""
    if "none" in (given.get("tool_choice"), given.get("function_call")):
        return
    for name, nothing in _TOOLS.items():
        if given.get(name) not in (None, nothing):
            raise APIError(
                400,
                f"the model cannot call tools; leave {name} out, or set tool_choice to none.",
                code="unsupported_parameter",
                param=name,
            )


def _check_count(given: dict[str, Any]) -> None:
    count, left = 0, [given]
    while left:
        one: Any = left.pop()
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        count += len(inner)
        if count > MOST_VALUES:
            raise APIError(
                400,
                f"the request has more than {MOST_VALUES:,} values in it; send less.",
                code="invalid_value",
            )
        left += inner


def _refused(error: ValidationError) -> APIError:
    """The first validation error, with its location in the request."""
    if error.error_count() > _MOST_ERRORS:
        return APIError(
            400, f"more than {_MOST_ERRORS} things are wrong with the request; send what "
            "this endpoint takes.", code="invalid_value",
        )  # fmt: skip
    first = error.errors(include_url=False, include_input=False)[0]
    place = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        return APIError(
            400, f"there is no parameter {place}.", code="unknown_parameter", param=place
        )
    if first["type"] == "none_required":
        return _unsupported(place)
    said = first["msg"].removeprefix("Value error, ")[:300]  # it may quote what was sent
    return APIError(400, f"{place} cannot be: {said}.", code="invalid_value", param=place)


def _unsupported(place: str) -> APIError:
    return APIError(
        400,
        f"{place} is not supported here; leave it out.",
        code="unsupported_parameter",
        param=place,
    )


def _place(location: Sequence[str | int]) -> str:
    """Format a location as `messages[0].content[1].text`, without the types that pydantic adds."""
    if location[:1] == ("prompt",):  # what follows is a type, of which there are several
        return "prompt"
    path = ""
    for at, step in enumerate(location):
        if isinstance(step, int):
            path += f"[{step}]"
        elif at == 1 and location[0] == "response_format":
            continue
        elif at < 4 or location[at - 2] != "content":
            path += f".{step}" if path else step
    return path[:200]
