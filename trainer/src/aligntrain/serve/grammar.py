"""Answers held to JSON or to a JSON Schema: tokens that would leave it are not chosen."""

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from alignshared import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerBase

_OPTIONS = {
    # One space at most: a small model may go on with white space for ever.
    "whitespace_pattern": "[ ]?",
    "coerce_one_of": False,  # `anyOf` in its place would let through what the schema does not
    "lenient": False,
}
_MOST_STATES = 50_000
"""Maximum states of a schema's lexer, of 1 to 2 kB each."""


class Grammar:
    """What one answer may go on with."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    def copy(self) -> "Grammar":
        """Return another answer's grammar, in the same state."""
        return Grammar(self._matcher.deep_copy())

    def masked(self, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` [V] with minus infinity at tokens that may not follow.

        Raises:
            InputError: no token may follow, or the schema is too complex.
        """
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        # Rows of the embedding table beyond the tokenizer's are no tokens.
        allowed = functional.pad(allowed, (0, len(scores) - len(allowed))).bool()
        if self._matcher.is_error() or not bool(allowed.any()):
            raise InputError(
                f"the answer could not be held to the response_format ({self._error()}); give a "
                "simpler schema."
            )
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Go on with `token`, one that `masked` allows."""
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def _error(self) -> str:
        said = " ".join(self._matcher.get_error().split())
        return said[:300] or "no token may follow"


class Grammars:
    """Makes grammars for the answers of one model; thread-safe.

    `ends` are the tokens that end an answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._made: LLTokenizer | None = None
        self._lock = threading.Lock()

    def of(self, schema: dict[str, Any]) -> Grammar:
        """Return the grammar of JSON that keeps `schema`.

        Raises:
            InputError: the schema is wrong or has parts that cannot be kept, or the model's
                tokenizer does not say of which bytes a token is.
        """
        from llguidance import LLMatcher, LLParserLimits

        # The last options count: a schema may have some of its own.
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)  # pyright: ignore[reportArgumentType]
        limits = LLParserLimits(max_lexer_states=_MOST_STATES, verbose_errors=False)
        matcher = LLMatcher(self._of_bytes(), grammar, log_level=0, limits=limits)
        if matcher.is_error():
            said = " ".join(matcher.get_error().split())[:300]
            raise InputError(f"answers cannot be held to this schema: {said}.")
        return Grammar(matcher)

    def _of_bytes(self) -> "LLTokenizer":
        """The bytes of each token, made at the first use as that takes a while."""
        from llguidance.hf import from_tokenizer

        with self._lock:
            if self._made is None:
                try:
                    self._made = from_tokenizer(self._tokenizer, eos_token=[*self._ends])  # pyright: ignore[reportArgumentType]
                except ValueError as error:
                    raise InputError(
                        "the model's tokenizer does not say of which bytes a token is "
                        f"({str(error)[:200]}); leave response_format out."
                    ) from error
            return self._made
