"""OpenAI's response bodies and stream events."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aligntrain.serve.request import Event, Finished, PrefillDone, TextDelta, TokenLogprob


def event(data: dict[str, Any]) -> str:
    """Format `data` as one server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


@dataclass
class Choice:
    """One answer to a prompt, as it grows by the engine's events."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    gate_weights: list[float] | None = None
    reason: str | None = None
    tokens: int = 0

    def add(self, news: Event) -> None:
        """Add what `news` tells."""
        if isinstance(news, PrefillDone):
            self.gate_weights = news.gate_weights
        elif isinstance(news, TextDelta):
            self.text += news.text
            self.logprobs += news.logprobs
        elif isinstance(news, Finished):
            self.reason, self.tokens = news.reason, news.tokens


class Reply(ABC):
    """Builds the response to a request, or the events of its stream.

    `warnings` are sentences about what the server does otherwise than asked. With `logprobs` those
    of tokens are told.
    """

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(
        self, model: str, prompt_tokens: int, *, warnings: Sequence[str] = (), logprobs: bool
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._logprobs = logprobs
        self._warnings = {"warnings": list(warnings)} if warnings else {}
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._common = {"created": int(time.time()), "model": model}

    @abstractmethod
    def _choice(self, choice: Choice) -> dict[str, Any]:
        """A whole answer."""

    @abstractmethod
    def _delta(self, place: int, text: str | None, logprobs: Any) -> dict[str, Any]:
        """More of the answer at `place`: its begin where `text` is None."""

    @abstractmethod
    def _told(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """Log-probabilities of text that begins at `offset` of the answer."""

    def _extras(self, _choices: Sequence[Choice]) -> dict[str, Any]:
        """What the response says of all answers."""
        return self._warnings

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The body of a response without streaming."""
        told = [
            {
                "index": place,
                **self._choice(choice),
                "finish_reason": choice.reason,
                "logprobs": self._told(choice.logprobs, 0) if self._logprobs else None,
            }
            for place, choice in enumerate(choices)
        ]
        whole = self._object(self.kind, told)
        return whole | {"usage": self._usage(choices), **self._extras(choices)}

    def chunk(self, place: int, news: Event, choice: Choice) -> dict[str, Any]:
        """The event that tells `news` of the answer at `place`, which is so far `choice`."""
        text: str | None = None
        logprobs = reason = None
        if isinstance(news, TextDelta):
            text = news.text
            offset = len(choice.text) - len(text)
            logprobs = self._told(news.logprobs, offset) if self._logprobs else None
        elif isinstance(news, Finished):
            text, reason = "", news.reason
        delta = self._delta(place, text, logprobs)
        chunk = self._object(self.chunk_kind, [{"index": place, **delta, "finish_reason": reason}])
        if isinstance(news, PrefillDone):
            chunk |= self._extras([choice])
        return chunk

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The chunk with token counts."""
        return self._object(self.chunk_kind, []) | {"usage": self._usage(choices)}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, **self._common, "choices": choices}

    def _usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        tokens = sum(choice.tokens for choice in choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
        }


class ChatReply(Reply):
    """Replies of `/v1/chat/completions`; `gate` adds the gate's weights."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, *given: Any, gate: bool, **options: Any) -> None:
        super().__init__(*given, **options)
        self._shows_gate = gate

    def _choice(self, choice: Choice) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def _delta(self, place: int, text: str | None, logprobs: Any) -> dict[str, Any]:
        begin = {"role": "assistant", "content": ""}
        delta = begin if text is None else {"content": text} if text else {}
        return {"delta": delta, "logprobs": logprobs}

    def _told(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        content = [
            {**_token(one), "top_logprobs": [_token(other) for other in one.likeliest]}
            for one in logprobs
        ]
        return {"content": content, "refusal": None}

    def _extras(self, choices: Sequence[Choice]) -> dict[str, Any]:
        # One prompt, and so the same gate for all.
        gate = {"gate": choices[0].gate_weights} if self._shows_gate else {}
        return {**super()._extras(choices), **gate}


class TextReply(Reply):
    """Replies of `/v1/completions`."""

    kind = "text_completion"
    chunk_kind = "text_completion"
    prefix = "cmpl"

    def _choice(self, choice: Choice) -> dict[str, Any]:
        return {"text": choice.text}

    def _delta(self, place: int, text: str | None, logprobs: Any) -> dict[str, Any]:
        return {"text": text or "", "logprobs": logprobs}

    def _told(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        offsets = [offset]
        for one in logprobs:
            offsets.append(offsets[-1] + len(one.text))
        return {
            "tokens": [one.text for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [
                # Of parts of characters, which all have one text, the likeliest.
                {other.text: other.logprob for other in reversed(one.likeliest)}
                for one in logprobs
            ],
            "text_offset": offsets[:-1],
        }


def _token(one: TokenLogprob) -> dict[str, Any]:
    # Null where the token is a part of a character, as OpenAI's API has it.
    encoded = None if "\ufffd" in one.text else list(one.text.encode())
    return {"token": one.text, "logprob": one.logprob, "bytes": encoded}
