"""The body of a chat request: OpenAI's fields that are honoured here, and two of ours."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from aligntrain.serve.refusals import Refusal

_IGNORED = frozenset(
    {
        "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "safety_identifier",
        "service_tier", "store", "user",
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


class Message(BaseModel):
    """A turn. What else a client says of it, as it does of answers that it sends back, is left."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]

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

    include_usage: bool = False
    include_obfuscation: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class ChatRequest(BaseModel):
    """What `/v1/chat/completions` takes.

    `level`, 1 to N, takes that level's vector in the place of the gate's mix; `gate` asks for the
    gate's weights. Without `temperature` each token is the likeliest, as `aligntrain chat` has it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
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
    gate: bool = False

    @property
    def image_urls(self) -> list[str]:
        """Where the pictures are, in reading order."""
        return [url for message in self.messages for url in message.image_urls]

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
    known = {k: v for k, v in given.items() if k not in _ONLY and k not in _IGNORED}
    try:
        return ChatRequest.model_validate(known)
    except ValidationError as error:
        raise _refused(error) from error


def _refused(error: ValidationError) -> Refusal:
    """The first thing that is wrong, with its place in the request."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        return Refusal(
            400, f"there is no parameter {place}.", code="unknown_parameter", param=place
        )
    said = first["msg"].removeprefix("Value error, ")
    return Refusal(400, f"{place} cannot be: {said}.", code="invalid_value", param=place)


def _place(location: Sequence[str | int]) -> str:
    """`messages[0].content[1].text` of its steps; names of a union's members are left out."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step not in ("text", "image_url") or not path.endswith("]"):
            path += f".{step}" if path else step
    return path
