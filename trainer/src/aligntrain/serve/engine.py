"""Continuous batching in one thread.

Rows join and leave the batch between two tokens, so a short answer never waits for a long one.
New prompts are prefilled together, padded on the left, and their keys and values are concatenated
with those of the running rows. In float32 each row equals what it would be alone. A request with
guidance has two rows, which join and leave together.

LLMs whose rows interact other than through attention (recurrent layers, rotary frequencies that
depend on the longest row) answer one request at a time.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from aligntrain.inference.generate import generation_settings
from aligntrain.model import AlignGPTForConditionalGeneration, AlignGPTOutput, AlignGPTProcessor
from aligntrain.model.generation import without_vector
from aligntrain.model.packing import obstacle
from aligntrain.serve.decoding import (
    BatchCache,
    Detokenizer,
    Sampler,
    branches,
    guided,
    token_logprob,
    tokens_in_memory,
)
from aligntrain.serve.metrics import Metrics
from aligntrain.serve.request import (
    Failed,
    Finished,
    PrefillDone,
    Prompt,
    Request,
    TextDelta,
    TokenLogprob,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

READ_AT_ONCE = 8192
"""Tokens of prompts, padding included, that are read in one go; a longer prompt is read alone."""

_FULL = Failed("the model ran out of memory; ask again later, or for less.")
_STOPPING = Failed("the server is stopping.")
_BROKEN = Failed("the model failed at this request; the server's log says how.", final=True)


@dataclass(frozen=True, slots=True)
class _Step:
    """Result of one run of the model for R requests.

    `logits` [R, V] are those of the next token, guidance included, `likeliest` [R] their argmax;
    `gate_weights` [R, N-1] are None if the gate was not used. `cached` has all of their branches.
    """

    cached: BatchCache
    logits: torch.Tensor
    likeliest: list[int]
    gate_weights: list[list[float]] | None


@dataclass(slots=True, eq=False)
class _Row:
    request: Request
    detokenizer: Detokenizer
    sampler: Sampler | None
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of tokens without text as yet
    tokens: int = 0
    last: int = 0


class Engine:
    """Answers requests with `model`, at most `rows` at a time.

    Of answers that are written together, the rows times the tokens of the longest one, its prompt
    included, are at most `total_tokens` (by default what fits into memory); others wait. One that
    is longer by itself is written alone.

    If its thread dies of an unexpected error, `died` is called with it and every request fails.
    """

    def __init__(
        self,
        model: AlignGPTForConditionalGeneration,
        processor: AlignGPTProcessor,
        *,
        rows: int = 16,
        total_tokens: int | None = None,
        metrics: Metrics | None = None,
        died: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self._model = model.eval()
        self._processor = processor
        why_not = _obstacle(model.model.language_model)
        if why_not is not None and rows > 1:
            log.warning("the LLM answers one request at a time: %s.", why_not)
        self._joins = why_not is None
        self._most_rows = rows if self._joins else 1
        self._total_tokens = total_tokens or tokens_in_memory(model)
        self._metrics = metrics or Metrics()
        self._died = died
        self._ends = frozenset(generation_settings(model, processor, 1, 0.0).eos_token_id)  # pyright: ignore[reportArgumentType]
        self._waiting: deque[Request] = deque()
        self._reading: list[Request] = []
        self._rows: list[_Row] = []
        self._cached: BatchCache | None = None
        self._news = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="aligntrain-engine", daemon=True)

    def start(self) -> "Engine":
        """Start the thread."""
        self._thread.start()
        return self

    def submit(self, *requests: Request) -> None:
        """Queue `requests`, which are read together if they fit."""
        with self._news:
            if not self._stopping:
                self._waiting += requests
                self._news.notify()
                return
        for request in requests:
            request.report(_STOPPING)

    def stop(self) -> None:
        """Stop after the current token; unfinished requests fail."""
        with self._news:
            self._stopping = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait():
                    self._drop_cancelled()
                    self._reading = self._next_requests()
                    self._read(self._reading)
                    self._reading = []
                    if self._rows:
                        self._write()
                    self._metrics.rows.set(len(self._rows))
                    cached = self._cached
                    self._metrics.cached_tokens.set(cached.mask.numel() if cached else 0)
        except BaseException as error:
            self._died(error)
            raise
        finally:
            with self._news:
                self._stopping = True
                left = [*self._reading, *(row.request for row in self._rows), *self._waiting]
            for request in left:
                request.report(_STOPPING)

    def _wait(self) -> bool:
        """Block until there is work; return whether there is."""
        with self._news:
            self._news.wait_for(lambda: self._stopping or self._rows or self._waiting)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        if any(row.request.cancelled for row in self._rows):
            self._keep([i for i, row in enumerate(self._rows) if not row.request.cancelled])

    def _next_requests(self) -> list[Request]:
        """The waiting requests that fit, first come first served."""
        requests: list[Request] = []
        running = [row.request for row in self._rows]
        with self._news:
            # Wherever they stand, or clients that come and go would fill the memory meanwhile.
            self._waiting = deque(request for request in self._waiting if not request.cancelled)
            while self._waiting:
                more = [*requests, self._waiting[0]]
                # The first is read even if it is long, or takes two rows where the limit is one.
                if (running or requests) and not self._fit([*running, *more]):
                    break
                prompts = [request.prompt for request in more]
                rows = sum(prompt.branches for prompt in prompts)
                if requests and rows * max(len(p.input_ids) for p in prompts) > READ_AT_ONCE:
                    break
                requests.append(self._waiting.popleft())
        return requests

    def _fit(self, requests: list[Request]) -> bool:
        """Whether there are rows for `requests`, and memory for them at their full length."""
        rows = sum(request.prompt.branches for request in requests)
        longest = max(len(one.prompt.input_ids) + one.max_new_tokens for one in requests)
        return rows <= self._most_rows and rows * longest <= self._total_tokens

    def _read(self, requests: list[Request]) -> None:
        """Prefill prompts and emit their first tokens; a forced level is prefilled separately."""
        for forced in (False, True):
            group = [
                request for request in requests if (request.prompt.level is not None) == forced
            ]
            if group:
                self._read_together(group)

    def _read_together(self, requests: list[Request]) -> None:
        step = self._tried(lambda: self._prefill([request.prompt for request in requests]))
        if isinstance(step, Failed):
            if len(requests) == 1:
                requests[0].report(step)
                return
            for request in requests:  # one of them may be at fault, and the others not
                self._read_together([request])
            return
        rows = [
            _Row(
                request,
                Detokenizer(self._processor.tokenizer, request.stops),
                None
                if request.sampling.likeliest and request.grammar is None
                else Sampler(request.sampling, request.grammar),
            )
            for request in requests
        ]
        gate = step.gate_weights or [None] * len(rows)
        for row, weights in zip(rows, gate, strict=True):
            # Zero in rows without the gate.
            row.request.report(PrefillDone(weights if weights and any(weights) else None))
        going = self._accept(rows, step)
        if going:
            self._join([rows[i] for i in going], step.cached, _branches(rows, going))

    def _join(self, rows: list[_Row], read: BatchCache, places: list[int]) -> None:
        """Add `rows`, whose branches are at `places` of `read`, to the batch."""

        def joined() -> BatchCache:
            mine = read.only(places) if len(places) < len(read.mask) else read
            return mine if self._cached is None else self._cached.beside(mine)

        cached = self._tried(joined)
        if isinstance(cached, Failed):
            for row in rows:
                row.request.report(cached)
            return
        self._cached = cached
        self._rows += rows

    def _prefill(self, prompts: list[Prompt]) -> _Step:
        """Run the prompts and return the step after which each has its first token."""
        model = self._model
        rows = [prompt for prompt in prompts for _ in range(prompt.branches)]
        padded = self._processor.pad_rows([prompt.input_ids for prompt in rows], "left")
        given = {name: torch.tensor(ids, device=model.device) for name, ids in padded.items()}
        if plain := [place for own in branches(prompts) for place in own[1:]]:
            ids, mask = given["input_ids"], given["attention_mask"]
            ids[plain], mask[plain] = without_vector(ids[plain], mask[plain], model.config)
        pixels = [prompt.pixel_values for prompt in rows if prompt.pixel_values is not None]
        if pixels:
            given["pixel_values"] = torch.cat(pixels).to(model.device, model.dtype)
        if prompts[0].level is not None:
            levels = [prompt.level for prompt in rows]
            given["levels"] = torch.tensor(levels, device=model.device)
        # Without a configuration each layer keeps all tokens, those with a sliding window too, so
        # that rows of any length can be put side by side; the masks see to the windows.
        step = self._step(given, DynamicCache() if self._joins else None, prompts)
        self._metrics.prompt_tokens.inc(sum(len(prompt.input_ids) for prompt in prompts))
        return step

    def _step(
        self, given: dict[str, torch.Tensor], cache: Cache | None, prompts: Sequence[Prompt]
    ) -> _Step:
        output: AlignGPTOutput = self._model(**given, cache=cache, use_cache=True, logits_to_keep=1)
        assert output.logits is not None
        assert output.cache is not None
        logits = guided(output.logits[:, -1], prompts)  # [B, V] -> [R, V]
        # On a GPU, pending errors surface here.
        likeliest: list[int] = logits.argmax(dim=-1).tolist()
        weights = output.gate_weights
        if weights is not None:
            weights = weights[[own[0] for own in branches(prompts)]].float().tolist()
        return _Step(BatchCache(output.cache, given["attention_mask"]), logits, likeliest, weights)

    def _write(self) -> None:
        """Generate one more token for each row."""
        assert self._cached is not None
        cached, rows = self._cached, self._rows
        self._metrics.step_rows.observe(len(rows))

        def next_step() -> _Step:
            prompts = [row.request.prompt for row in rows]
            last = [[row.last] for row in rows for _ in range(row.request.prompt.branches)]
            ids = torch.tensor(last, device=cached.mask.device)  # [B, 1]
            mask = torch.cat([cached.mask, torch.ones_like(ids)], dim=1)
            return self._step({"input_ids": ids, "attention_mask": mask}, cached.cache, prompts)

        step = self._tried(next_step)
        if isinstance(step, Failed):  # the cache cannot be trusted any more
            self._lose(step)
            return
        self._cached = step.cached
        going = self._accept(rows, step)
        if len(going) < len(rows):
            self._keep(going)

    def _keep(self, places: list[int]) -> None:
        cached = self._cached
        assert cached is not None
        kept_branches = _branches(self._rows, places)
        self._rows = [self._rows[i] for i in places]
        kept = self._tried(lambda: cached.only(kept_branches)) if places else None
        if isinstance(kept, Failed):
            self._lose(kept)
        else:
            self._cached = kept

    def _lose(self, failed: Failed) -> None:
        """Fail the running rows and carry on without them."""
        rows, self._rows, self._cached = self._rows, [], None
        if len(rows) > 1:  # one of them may be at fault, and the others not
            failed = replace(failed, final=False)
        for row in rows:
            row.request.report(failed)

    def _tried(self, work: Callable[[], T]) -> T | Failed:
        """Return the result of `work`, or the failure to report.

        Errors of one batch leave the others running, except a GPU error other than
        out-of-memory, after which the GPU cannot be used.
        """
        try:
            return work()
        except Exception as error:
            full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
            if isinstance(error, torch.AcceleratorError) and not full:
                raise
            log.error("a step of the model failed: %s", error, exc_info=error)
            failed = _FULL if full else _BROKEN
        # Out of the handler, as the error holds by its traceback all that the model had computed.
        torch.cuda.empty_cache()
        return failed

    def _accept(self, rows: list[_Row], step: _Step) -> list[int]:
        """Give each row its next token; return the indices of the rows that continue."""
        self._metrics.new_tokens.inc(len(rows))
        going: list[int] = []
        for i, row in enumerate(rows):
            token = step.likeliest[i]
            if row.sampler is not None:
                token = self._tried(partial(row.sampler.draw, step.logits[i]))
            if isinstance(token, Failed):
                row.request.report(token)
                continue
            if row.request.logprobs is not None and token not in self._ends:
                count = row.request.logprobs
                row.logprobs.append(token_logprob(step.logits[i], token, count, row.detokenizer))
            if self._goes_on(row, token):
                going.append(i)
        return going

    def _goes_on(self, row: _Row, token: int) -> bool:
        request, detokenizer = row.request, row.detokenizer
        row.tokens += 1
        row.last = token
        ended = token in self._ends
        text = "" if ended else detokenizer.add(token)
        ended = ended or detokenizer.stopped or (row.sampler is not None and row.sampler.complete)
        cut = not ended and row.tokens >= request.max_new_tokens
        if ended or cut:
            text += detokenizer.end()
        if text:
            request.report(TextDelta(text, tuple(row.logprobs)))
            row.logprobs.clear()
        if ended or cut:
            # The rest may have held the stop.
            reason = "length" if cut and not detokenizer.stopped else "stop"
            request.report(Finished(reason, row.tokens))
        return not (ended or cut)


def _branches(rows: Sequence[_Row], places: Sequence[int]) -> list[int]:
    """Return the places in the batch of the branches of those of `rows` at `places`."""
    all_branches = branches([row.request.prompt for row in rows])
    return [branch for place in places for branch in all_branches[place]]


def _obstacle(language_model: PreTrainedModel) -> str | None:
    """The reason why rows of `language_model` cannot be batched exactly, or None."""
    rope = getattr(language_model.config.get_text_config(), "rope_parameters", None) or {}
    # One for all layers, or one for each kind of them.
    kinds = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, dict)}
    changing = kinds & {"dynamic", "longrope"}
    if changing:
        return f"its rotary frequencies ({changing.pop()}) follow the longest row"
    return obstacle(language_model)
