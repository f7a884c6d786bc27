"""One thread that writes all answers together: continuous batching.

Rows join between two tokens and leave when they are done, so nobody waits for another's answer to
end. New prompts are read together, padded on the left, and their keys and values put beside those
of the rows that are being written. In float32 each row is what it would be alone.

An LLM in which rows meet otherwise than by attention (recurrent layers, or rotary frequencies that
follow the longest row) answers one at a time.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch.nn import functional
from transformers import DynamicCache

from aligntrain.inference.generate import generation_settings
from aligntrain.model.packing import obstacle
from aligntrain.serve.detokenizer import Writing
from aligntrain.serve.metrics import Metrics
from aligntrain.serve.request import Begun, Ended, Failed, Job, Piece, Sampler


@dataclass(frozen=True, slots=True)
class Cached:
    """Keys and values of B rows, the shorter ones padded on the left.

    `cache` holds [B, heads, T, width] for each layer, `mask` [B, T] int64 is 0 at padding. Rows
    count positions over their own tokens, so how much padding stands before a row is all the same.
    """

    cache: Any
    mask: torch.Tensor

    def beside(self, other: "Cached") -> "Cached":
        """These rows, and after them those of `other`."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        layers = [
            tuple(_stacked(a, b, length) for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True)
        ]
        masks = [functional.pad(m, (length - m.shape[1], 0)) for m in (self.mask, other.mask)]
        return Cached(DynamicCache(layers), torch.cat(masks))

    def only(self, rows: Sequence[int]) -> "Cached":
        """The `rows`, without the padding that none of them needs."""
        places = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[places]
        first = int(mask.any(dim=0).int().argmax())
        layers = [
            tuple(None if one is None else one[places, :, first:] for one in pair)
            for pair in _layers(self.cache)
        ]
        return Cached(DynamicCache(layers), mask[:, first:])


def _layers(cache: Any) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _stacked(a: torch.Tensor | None, b: torch.Tensor | None, length: int) -> torch.Tensor | None:
    if a is None or b is None:  # a layer that uses another one's keys and values
        return None
    return torch.cat([functional.pad(one, (0, 0, length - one.shape[2], 0)) for one in (a, b)])


log = logging.getLogger(__name__)

T = TypeVar("T")

READ_AT_ONCE = 8192
"""Tokens of prompts, padding included, that are read in one go; a longer prompt is read alone."""

_FULL = Failed("the model ran out of memory; ask again later, or for less.")
_BROKEN = Failed("the model failed at this request; the server's log says how.", final=True)


@dataclass(slots=True, eq=False)
class _Row:
    job: Job
    writing: Writing
    sampler: Sampler | None
    tokens: int = 0
    last: int = 0


class Engine:
    """Answers jobs, `rows` of them at a time, with `model` on its device.

    When its thread dies of what it does not know, `died` is called with that, and every job has
    failed.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        rows: int = 16,
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
        self._metrics = metrics or Metrics()
        self._died = died
        self._ends = frozenset(generation_settings(model, processor, 1, 0.0).eos_token_id)  # pyright: ignore[reportArgumentType]
        self._waiting: deque[Job] = deque()
        self._reading: list[Job] = []
        self._rows: list[_Row] = []
        self._cached: Cached | None = None
        self._news = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="aligntrain-engine", daemon=True)

    def start(self) -> "Engine":
        """Begin to answer."""
        self._thread.start()
        return self

    def submit(self, job: Job) -> None:
        """Have `job` answered when its turn comes."""
        with self._news:
            stopped = self._stopping
            if not stopped:
                self._waiting.append(job)
                self._news.notify()
        if stopped:
            job.tell(Failed("the server is stopping."))

    def stop(self) -> None:
        """Answer no more; returns when the last token is written. What is unfinished fails."""
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
                    self._reading = self._next_jobs()
                    self._read(self._reading)
                    self._reading = []
                    if self._rows:
                        self._write()
                    self._metrics.rows.set(len(self._rows))
        except BaseException as error:
            self._died(error)
            raise
        finally:
            with self._news:
                self._stopping = True
                left = [*self._reading, *(row.job for row in self._rows), *self._waiting]
            for job in left:
                _tell(job, Failed("the server is stopping."))

    def _wait(self) -> bool:
        """Wait for something to do; whether there is."""
        with self._news:
            self._news.wait_for(lambda: self._stopping or self._rows or self._waiting)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        if any(row.job.cancelled for row in self._rows):
            self._keep([i for i, row in enumerate(self._rows) if not row.job.cancelled])

    def _next_jobs(self) -> list[Job]:
        """Those that wait and have room, first come first served."""
        jobs: list[Job] = []
        longest = 0
        with self._news:
            # Wherever they stand, or clients that come and go would fill the memory meanwhile.
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            while self._waiting and len(self._rows) + len(jobs) < self._most_rows:
                longest = max(longest, len(self._waiting[0].prompt.input_ids))
                if jobs and longest * (len(jobs) + 1) > READ_AT_ONCE:
                    break
                jobs.append(self._waiting.popleft())
        return jobs

    def _read(self, jobs: list[Job]) -> None:
        """Read prompts and write their first tokens; those with a forced level for themselves."""
        for forced in (False, True):
            group = [job for job in jobs if (job.prompt.level is not None) == forced]
            if group:
                self._read_together(group)

    def _read_together(self, jobs: list[Job]) -> None:
        read = self._tried(lambda: self._prefill([job.prompt for job in jobs]))
        if isinstance(read, Failed):
            if len(jobs) == 1:
                _tell(jobs[0], read)
                return
            for job in jobs:  # one of them may be at fault, and the others not
                self._read_together([job])
            return
        output, mask, likeliest = read
        rows = [_Row(job, self._writing(job), _sampler(job)) for job in jobs]
        for row, weights in zip(rows, _gate(output, len(rows)), strict=True):
            _tell(row.job, Begun(weights))
        going = self._accept(rows, output.logits[:, -1], likeliest)
        if going:
            self._join([rows[i] for i in going], Cached(output.past_key_values, mask), going)

    def _join(self, rows: list[_Row], read: Cached, places: list[int]) -> None:
        """Write `rows` too, which stand at `places` of what was `read`."""

        def joined() -> Cached:
            mine = read.only(places) if len(places) < len(read.mask) else read
            return mine if self._cached is None else self._cached.beside(mine)

        cached = self._tried(joined)
        if isinstance(cached, Failed):
            for row in rows:
                _tell(row.job, cached)
            return
        self._cached = cached
        self._rows += rows

    def _prefill(self, prompts: list[Any]) -> tuple[Any, torch.Tensor, list[int]]:
        """The model's output, the mask [B, T] of what it read, and the likeliest tokens [B]."""
        model = self._model
        padded = self._processor.pad_rows([prompt.input_ids for prompt in prompts], "left")
        ids, mask = (
            torch.tensor(padded[name], device=model.device)
            for name in ("input_ids", "attention_mask")
        )
        pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if pixels:
            given["pixel_values"] = torch.cat(pixels).to(model.device, model.dtype)
        if prompts[0].level is not None:
            levels = [prompt.level for prompt in prompts]
            given["levels"] = torch.tensor(levels, device=model.device)
        # Without a configuration each layer keeps all tokens, those with a sliding window too, so
        # that rows of any length can be put side by side; the masks see to the windows.
        cache = DynamicCache() if self._joins else None
        output = model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        likeliest = _likeliest(output)
        self._metrics.prompt_tokens.inc(int(mask.sum()))
        return output, mask, likeliest

    def _write(self) -> None:
        """One token more for each row."""
        assert self._cached is not None
        cached, rows = self._cached, self._rows
        self._metrics.step_rows.observe(len(rows))
        last = [[row.last] for row in rows]

        def step() -> tuple[Any, torch.Tensor, list[int]]:
            ids = torch.tensor(last, device=cached.mask.device)
            mask = torch.cat([cached.mask, torch.ones_like(ids)], dim=1)
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cached.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return output, mask, _likeliest(output)

        written = self._tried(step)
        if isinstance(written, Failed):  # the cache cannot be trusted any more
            self._lose(written)
            return
        output, mask, likeliest = written
        self._cached = Cached(output.past_key_values, mask)
        going = self._accept(rows, output.logits[:, -1], likeliest)
        if len(going) < len(rows):
            self._keep(going)

    def _keep(self, places: list[int]) -> None:
        cached = self._cached
        assert cached is not None
        self._rows = [self._rows[i] for i in places]
        kept = self._tried(lambda: cached.only(places)) if places else None
        if isinstance(kept, Failed):
            self._lose(kept)
        else:
            self._cached = kept

    def _lose(self, failed: Failed) -> None:
        """Go on without the rows that are being written."""
        rows, self._rows, self._cached = self._rows, [], None
        if len(rows) > 1:  # one of them may be at fault, and the others not
            failed = replace(failed, final=False)
        for row in rows:
            _tell(row.job, failed)

    def _tried(self, work: Callable[[], T]) -> T | Failed:
        """What `work` gives, or what is to be told of its failure: whatever a model raises, others
        are served on. But a GPU that has failed at anything but memory serves nobody any more.
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

    def _accept(self, rows: list[_Row], logits: torch.Tensor, likeliest: list[int]) -> list[int]:
        """Give each row its next token, drawn of `logits` [B, V] or the `likeliest`; the places of
        those that go on.
        """
        self._metrics.new_tokens.inc(len(rows))
        going: list[int] = []
        for place, row in enumerate(rows):
            token = likeliest[place]
            if row.sampler is not None:
                token = self._tried(partial(_drawn, row.sampler, logits[place]))
            if isinstance(token, Failed):
                _tell(row.job, token)
            elif self._goes_on(row, token):
                going.append(place)
        return going

    def _goes_on(self, row: _Row, token: int) -> bool:
        row.tokens += 1
        row.last = token
        ended = token in self._ends
        text = "" if ended else row.writing.add(token)
        ended = ended or row.writing.stopped
        cut = not ended and row.tokens >= row.job.max_new_tokens
        if ended or cut:
            text += row.writing.end()
        if text:
            _tell(row.job, Piece(text))
        if ended or cut:
            # The rest may have held the stop.
            _tell(
                row.job, Ended("length" if cut and not row.writing.stopped else "stop", row.tokens)
            )
        return not (ended or cut)

    def _writing(self, job: Job) -> Writing:
        return Writing(self._processor.tokenizer, job.stops)


def _obstacle(language_model: Any) -> str | None:
    """Why rows of `language_model` that are written together are not what they would be alone, or
    None.
    """
    rope = getattr(language_model.config.get_text_config(), "rope_parameters", None) or {}
    # One for all layers, or one for each kind of them.
    kinds = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, dict)}
    changing = kinds & {"dynamic", "longrope"}
    if changing:
        return f"its rotary frequencies ({changing.pop()}) follow the longest row"
    return obstacle(language_model)


def _sampler(job: Job) -> Sampler | None:
    return Sampler(job.sampling) if job.sampling.temperature > 0 else None


def _drawn(sampler: Sampler, logits: torch.Tensor) -> int | Failed:
    try:
        return sampler.draw(logits)
    except ArithmeticError as error:
        return Failed(f"{error}.", final=True)


def _likeliest(output: Any) -> list[int]:
    """The likeliest token of each row. On a GPU whatever has gone wrong is raised here at last."""
    return output.logits[:, -1].argmax(dim=-1).tolist()


def _gate(output: Any, rows: int) -> list[list[float] | None]:
    """The gate's weights of each row, None of one that it did not speak for."""
    if output.gate_weights is None:
        return [None] * rows
    weights: list[list[float]] = output.gate_weights.float().tolist()
    return [row if any(row) else None for row in weights]


def _tell(job: Job, event: Begun | Piece | Ended | Failed) -> None:
    if not job.cancelled:
        job.tell(event)
