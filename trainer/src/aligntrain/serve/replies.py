"""Answers in OpenAI's form: whole, or as a stream of events."""

import json
import time
import uuid
from typing import Any

from aligntrain.serve.refusals import Refusal

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
