"""Incremental detokenization of an answer."""

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
"""What tokenizers write for bytes that are no whole character, which may yet become one."""


class Detokenizer:
    """Turns tokens into text that can no longer change.

    It holds back incomplete characters and any prefix of a stop text. The concatenated output
    equals decoding all tokens at once, up to the first stop text. (Bytes that never form a
    character become U+FFFD in both, though the count may differ for tokenizers with single-byte
    tokens.)
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
        """Add `token` and return the text that became final."""
        self._ids.append(token)
        new = self._new_text()
        if not new or new.endswith(_UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._ready(new)

    def end(self) -> str:
        """Return the text that is still held back."""
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
        """The part of the held text and `new` that cannot belong to a stop text."""
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
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
