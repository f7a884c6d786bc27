"""The text of an answer while its tokens come."""

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
"""What tokenizers write for bytes that are no whole character, which may yet become one."""


class Writing:
    """Gives out text that will not change any more: whole characters, and nothing that may be the
    beginning of one of `stops`. What it has given out, put together, is what the tokenizer makes of
    all tokens at once, up to the first stop. (Bytes that never become a character are U+FFFD in
    both, though where a tokenizer has tokens for single bytes not always as many.)
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether one of `stops` has come; it and what follows are left out."""
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        # Tokens before `_read` are in the text already. Those from `_start` on are decoded once
        # more with the new ones, as a token's text may depend on the one before it.
        self._start = 0
        self._read = 0
        self._held = ""

    def add(self, token: int) -> str:
        """What `token` adds to the text, if anything is ready."""
        self._ids.append(token)
        new = self._new_text()
        if not new or new.endswith(_UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._ready(new)

    def end(self) -> str:
        """What is left when no token comes any more."""
        new = self._new_text()
        self._read = len(self._ids)
        ready = self._ready(new)
        rest, self._held = self._held, ""
        return ready + rest

    def _new_text(self) -> str:
        before = self._decoded(self._ids[self._start : self._read])
        return self._decoded(self._ids[self._start :])[len(before) :]

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""

    def _ready(self, new: str) -> str:
        """Of what is held and `new`, all that cannot be part of a stop."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
