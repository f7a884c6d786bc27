"""Splitting tokens of long captions into windows that fit the text tower."""

from typing import Any

import torch

MAX_WINDOWS = 16
"""Maximum windows per caption; the rest is cut off. For CLIP this is 1,200 tokens."""

_PROBE = "a " * 64
_PROBE_LENGTH = 8


class CaptionWindows:
    """Windows of `context_length` tokens under an open_clip `tokenizer`.

    A window has the tokenizer's begin and end tokens, with as many caption tokens as fit
    between; each token is in one window.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._pad = padding_of(tokenizer)
        # A repeated word, cut to a few tokens, reveals the begin and end tokens.
        row: list[int] = tokenizer([_PROBE], context_length=_PROBE_LENGTH)[0].tolist()
        word = max(row, key=row.count)
        first, last = row.index(word), _PROBE_LENGTH - row[::-1].index(word)
        self._begin, self._end = row[:first], row[last:]

    def __call__(self, captions: list[str]) -> list[torch.Tensor]:
        """Return each caption's windows [W, context_length], W from 1 to MAX_WINDOWS.

        The first window is the tokenizer's output for the caption, cut to the context.
        """
        marks = len(self._begin) + len(self._end)
        inside = self._context_length - marks
        rows_NL = self._tokenizer(captions, context_length=MAX_WINDOWS * inside + marks)
        ends = used_tokens(rows_NL, self._pad).tolist()
        return [
            self._cut(row[:end], inside) for row, end in zip(rows_NL.tolist(), ends, strict=True)
        ]

    def _cut(self, tokens: list[int], inside: int) -> torch.Tensor:
        words = tokens[len(self._begin) :]
        if self._end and words[-len(self._end) :] == self._end:  # may equal the padding
            words = words[: -len(self._end)]
        windows = torch.full((max(-(-len(words) // inside), 1), self._context_length), self._pad)
        for i, window in enumerate(windows):
            row = [*self._begin, *words[i * inside : (i + 1) * inside], *self._end]
            window[: len(row)] = torch.tensor(row)
        return windows


def padding_of(tokenizer: Any) -> int:
    """Padding token of an open_clip `tokenizer`."""
    return getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0) or 0


def used_tokens(tokens_NL: torch.Tensor, pad: int) -> torch.Tensor:
    """Number of tokens [N] before the padding of each row."""
    # A caption may contain the padding token, so tokens are not counted individually.
    is_token = tokens_NL != pad
    return (tokens_NL.shape[1] - is_token.flip(-1).int().argmax(-1)) * is_token.any(-1)
