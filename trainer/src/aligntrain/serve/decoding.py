"""State of the rows that are decoded together: keys and values, guidance, sampler, detokenizer."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import psutil
import torch
from torch.nn import functional
from transformers import (
    Cache,
    DynamicCache,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alignshared import InputError
from aligntrain.serve.grammar import Grammar
from aligntrain.serve.request import Failed, Prompt, Sampling, TokenLogprob

_CACHE_SHARE = 0.4
"""Share of the free memory for keys and values: where rows join or leave they are there twice."""

_UNFINISHED = "\ufffd"
"""What tokenizers write for bytes that are no whole character, which may yet become one."""


@dataclass(frozen=True, slots=True)
class BatchCache:
    """Keys and values of B rows, padded on the left.

    `cache` holds [B, heads, T, head_dim] for each layer; `mask` [B, T] int64 is 0 at padding.
    Positions count each row's own tokens, so the amount of padding does not matter.
    """

    cache: Cache
    mask: torch.Tensor

    def beside(self, other: "BatchCache") -> "BatchCache":
        """Concatenate the rows of `other` after these."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        layers = [
            tuple(_stacked(a, b, length) for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True)
        ]
        masks = [functional.pad(m, (length - m.shape[1], 0)) for m in (self.mask, other.mask)]
        return BatchCache(DynamicCache(layers), torch.cat(masks))

    def only(self, rows: Sequence[int]) -> "BatchCache":
        """Select `rows` and drop the padding that none of them needs."""
        places = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[places]
        first = int(mask.any(dim=0).int().argmax())
        layers = [
            tuple(None if one is None else one[places, :, first:] for one in pair)
            for pair in _layers(self.cache)
        ]
        return BatchCache(DynamicCache(layers), mask[:, first:])


def tokens_in_memory(model: PreTrainedModel) -> int:
    """Return for how many tokens the keys and values of `model`'s LLM fit into free memory."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # no attention, and nothing that grows with the tokens
        return sys.maxsize
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    bytes_ = 2 * config.num_hidden_layers * kept * size * model.dtype.itemsize
    return max(1, int(_CACHE_SHARE * _free_memory(model.device)) // bytes_)


def _free_memory(device: torch.device) -> int:
    """Bytes free on `device`; of this machine, what the process's control group may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        most, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        return min(free, max(0, int(most) - int(used)))
    except (OSError, ValueError):  # another system, or `max`: no limit
        return free


def _layers(cache: Cache) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    return [(layer.keys, layer.values) for layer in cache.layers]  # pyright: ignore[reportAttributeAccessIssue]


def _stacked(a: torch.Tensor | None, b: torch.Tensor | None, length: int) -> torch.Tensor | None:
    if a is None or b is None:  # a layer that uses another one's keys and values
        return None
    return torch.cat([functional.pad(one, (0, 0, length - one.shape[2], 0)) for one in (a, b)])


def branches(prompts: Sequence[Prompt]) -> list[range]:
    """Return the rows of the batch that belong to each of `prompts`, which follow each other."""
    ends = accumulate(prompt.branches for prompt in prompts)
    return [range(end - prompt.branches, end) for prompt, end in zip(prompts, ends, strict=True)]


def guided(logits: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Return the logits [R, V] of R prompts from those [B, V] of their branches.

    With guidance they are plain + guidance * (level - plain) in log-probabilities, level and plain
    being the two branches: classifier-free guidance of language models (arXiv 2306.17806).
    """
    if len(prompts) == len(logits):
        return logits
    rows = branches(prompts)
    merged = logits[[own[0] for own in rows]].float()  # [R, V]
    pairs = [i for i, own in enumerate(rows) if len(own) > 1]
    level = merged[pairs].log_softmax(dim=-1)  # [G, V]
    plain = logits[[rows[i][1] for i in pairs]].float().log_softmax(dim=-1)
    scale = merged.new_tensor([[prompts[i].guidance] for i in pairs])  # [G, 1]
    merged[pairs] = scale * (level - plain) + plain
    return merged


class Sampler:
    """Chooses the tokens of one row, independent of the other rows in the batch."""

    def __init__(self, sampling: Sampling, grammar: Grammar | None = None) -> None:
        self._grammar = grammar
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        # Of the CPU, so that a seed means the same wherever the model is.
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._warpers = [
            TemperatureLogitsWarper(max(sampling.temperature, 1e-4)),
            *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
            TopPLogitsWarper(sampling.top_p),
            *([MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []),
        ]

    def draw(self, logits: torch.Tensor) -> int | Failed:
        """Choose a token by `logits` [V]; fail if they are no numbers, or none may follow."""
        scores = self._penalized(logits.float())
        if self._grammar is not None:
            try:
                scores = self._grammar.masked(scores)
            except InputError as error:
                return Failed(str(error), final=True)
        if self._sampling.temperature == 0:
            token: int | Failed = int(scores.argmax())
        else:
            token = self._drawn(scores.unsqueeze(0))
        if not isinstance(token, Failed):
            self._counts[token] += 1
            if self._grammar is not None:
                self._grammar.accept(token)
        return token

    @property
    def complete(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._grammar is not None and self._grammar.complete

    def _penalized(self, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` [V] less the penalties, as in OpenAI's API."""
        presence, frequency = self._sampling.presence_penalty, self._sampling.frequency_penalty
        if not self._counts or not (presence or frequency):
            return scores
        tokens = torch.tensor([*self._counts], device=scores.device)
        counts = scores.new_tensor([*self._counts.values()])
        return scores.index_add(0, tokens, -(presence + frequency * counts))

    def _drawn(self, scores: torch.Tensor) -> int | Failed:
        for warper in self._warpers:
            scores = warper(None, scores)  # pyright: ignore[reportArgumentType] - reads no ids
        chances = scores.softmax(dim=-1).cpu()
        if not bool(chances.isfinite().all()):
            return Failed("the model's logits are no numbers.", final=True)
        return int(torch.multinomial(chances[0], 1, generator=self._generator))


def token_logprob(
    logits: torch.Tensor, token: int, count: int, detokenizer: "Detokenizer"
) -> TokenLogprob:
    """Return the log-probability of `token` in `logits` [V], with the `count` likeliest.

    `detokenizer` has the tokens before it.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    likeliest = tuple(
        TokenLogprob(detokenizer.text_of(other), value)
        for other, value in zip(ids.tolist(), values.tolist(), strict=True)
    )
    return TokenLogprob(detokenizer.text_of(token), float(logprobs[token]), likeliest)


class Detokenizer:
    """Turns tokens into text that can no longer change.

    It holds back incomplete characters and any prefix of a stop text. The concatenated output
    equals decoding all tokens at once, up to the first stop text. (Bytes that never form a
    character become U+FFFD in both, though the count may differ for tokenizers with single-byte
    tokens.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
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

    def text_of(self, token: int) -> str:
        """Return the text of `token` if it were the next, special or not."""
        before = self._ids[-1:]
        # A part of a character is decoded alone, as it has no text that more could be added to.
        told = str(self._tokenizer.decode(before))
        if told.endswith(_UNFINISHED):
            before, told = [], ""
        return str(self._tokenizer.decode([*before, token]))[len(told) :]

    def _new_text(self) -> str:
        before = self._decoded(self._ids[self._start : self._read])
        return self._decoded(self._ids[self._start :])[len(before) :]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _ready(self, new: str) -> str:
        """The part of the held text and `new` that cannot belong to a stop text."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        # The longest end of the text with which a stop text may begin.
        kept = max(
            (
                length
                for stop in self._stops
                for length in range(1, min(len(text) + 1, len(stop)))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]
