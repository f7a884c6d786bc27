"""A judge behind any OpenAI-compatible endpoint: asked, never trusted to answer."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from alignshared import InputError
from aligntrain.evaluate.judged import Judging
from aligntrain.evaluate.score import Record

KEY = "OPENAI_API_KEY"
"""The environment variable with the endpoint's key; a command line is for all to see."""

_TRIES = 3
_AT_ONCE = 4
_FAILURES_IN_A_ROW = 8
_TIMEOUT_S = 120.0
_PASSING = {408, 409, 429, 500, 502, 503, 504}


class JudgeError(Exception):
    """The judge gave no reply."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The model `model` at `url`, the base of an OpenAI-compatible API (`http://host:8000/v1`).

    `pause` seconds lie before a second try, twice that before a third.
    """

    url: str
    model: str
    pause: float = 2.0

    def ping(self) -> None:
        """Ask one short question.

        Raises:
            InputError: there is no reply; says why.
        """
        try:
            self.ask([{"role": "user", "content": "Reply with the word yes."}], 0.0, 16, tries=1)
        except JudgeError as error:
            raise InputError(
                f"the judge {self.model} at {self.url} does not answer ({error}); see that the URL "
                f"is the base of an OpenAI-compatible API, as in http://host:8000/v1, and the key "
                f"is in {KEY}."
            ) from error

    def ask(
        self, messages: Any, temperature: float, max_tokens: int, *, tries: int = _TRIES
    ) -> str:
        """The reply to `messages`.

        Raises:
            JudgeError: there is none, after `tries`, or after one that no other would mend.
        """
        reason = "it was not asked"
        asked = {
            "model": self.model,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        for attempt in range(1, tries + 1):
            try:
                return self._reply(asked)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}"
                if error.code not in _PASSING:
                    break
            except OSError as error:
                reason = str(getattr(error, "reason", error))
            except (ValueError, LookupError, TypeError):
                reason = "a reply that is no chat completion"
                break
            if attempt < tries:
                time.sleep(self.pause * attempt)
        raise JudgeError(reason)

    def _reply(self, asked: dict[str, Any]) -> str:
        key = os.environ.get(KEY)
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(asked).encode(),
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {key}"} if key else {}),
            },
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            content = json.load(response)["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise TypeError("no text")
        return content


def judge_all(
    judge: Judge, judging: Judging, records: Sequence[Record]
) -> Iterator[dict[str, Any]]:
    """What `judge` says of each of `records`, in their order: `row`, `reply`, `grade`, `error`.

    `grade` is None where there is no reply or no grade in it. A judge that fails too often in a row
    is asked no more.
    """
    failures = 0

    def one(record: Record) -> dict[str, Any]:
        said: dict[str, Any] = {"row": record["row"], "judge": judge.model, "grade": None}
        try:
            messages = judging.ask(record)
            reply = judge.ask(messages, judging.temperature, judging.max_tokens)
        except JudgeError as error:
            return said | {"error": str(error)}
        return said | {"reply": reply, "grade": judging.read(reply)}

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        for start in range(0, len(records), _AT_ONCE):
            for said in pool.map(one, records[start : start + _AT_ONCE]):
                failures = failures + 1 if "error" in said else 0
                yield said
            if failures >= _FAILURES_IN_A_ROW:
                return
