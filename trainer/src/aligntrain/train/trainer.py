"""The loop: steps of the optimizer, validations and checkpoints, from where the run stands.

The loss of a step is the mean over the labelled tokens of its whole global batch, on whatever ranks
and in whatever micro-batches they lie. So neither the number of ranks nor `batch.micro_size`
changes the loss or the gradients, but for rounding; averaging the means of micro-batches, as
LLaVA's trainer does, would give the tokens of short answers more weight wherever there are more
ranks. The random numbers of a step (of dropout, say) come from the seed, the step and the rank.
"""

import itertools
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignshared import AlignError
from aligntrain.data.loader import Loader, Share
from aligntrain.data.sampler import Order, Rows, in_turn
from aligntrain.model.losses import predicting_places
from aligntrain.progress import Display
from aligntrain.recipes import Recipe
from aligntrain.recipes.schema import Schedule
from aligntrain.train.checkpoint import model_identity, save_checkpoint
from aligntrain.train.deepspeed_engine import MasterState, is_plain, set_rates
from aligntrain.train.loggers import Recorder
from aligntrain.train.metrics import Flops, Speed, Sums, peak_flops, read_metrics
from aligntrain.train.profiling import part, profiling


def total_steps(max_steps: int | None, epochs: float, steps_per_epoch: int) -> int:
    """Steps of the optimizer: `max_steps`, or what `epochs` come to, rounded down; at least one."""
    return max_steps or max(1, int(epochs * steps_per_epoch))


def warmup_steps(total: int, ratio: float) -> int:
    """Steps in which the rate rises: `ratio` of all, rounded up as in transformers."""
    return min(math.ceil(total * ratio), total)


def rate_factor(step: int, total: int, warmup_ratio: float, schedule: Schedule) -> float:
    """By what the highest learning rate is multiplied in step `step` of 0..`total` - 1.

    It rises in equal parts from 1 / (warm-up + 1) to 1, then stays there (`constant`) or falls to 0
    along a half cosine, which it would reach in step `total` (Loshchilov and Hutter 2017, without
    restarts). transformers begins at 0 instead, so that a run's first step teaches nothing.

    Raises:
        ValueError: there is no such step.
    """
    if not 0 <= step < total:
        raise ValueError(f"there is no step {step} among {total}")
    warmup = warmup_steps(total, warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


log = logging.getLogger("aligntrain")

FAILED = "failed-step.json"
"""Where a run that stops at a loss that is no number lists the samples of that step."""

_NAMED = 8


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run trains on: the order of the rows, and who prepares this rank's part of them."""

    order: Order
    share: Share
    train: Loader
    validation: Loader
    validation_rows: Rows


@dataclass(slots=True)
class Interval:
    """What has been counted since the last line of metrics, or since the start."""

    sums: Sums
    steps: int = 0
    seconds: float = 0.0
    gradient_norm: float = 0.0
    rates: dict[str, float] = field(default_factory=dict[str, float])


class Loop:
    """Trains the model in `engine` on `data`, as `recipe` says, in the run folder `folder`.

    `recorder` is there on rank 0 alone.
    """

    def __init__(
        self,
        engine: Any,
        data: TrainingData,
        recipe: Recipe,
        *,
        folder: Path,
        recorder: Recorder | None = None,
    ) -> None:
        self._engine, self._data, self._recipe = engine, data, recipe
        self._folder, self._recorder = folder, recorder
        self._display = Display.silent()
        self._device = next(engine.module.parameters()).device
        self._rank = torch.distributed.get_rank()
        self._ranks = torch.distributed.get_world_size()
        self._micro_batches = data.share.micro_batches(recipe.batch.global_size)
        self._speed = Speed(self._ranks, Flops.of(engine.module), peak_flops(self._device))
        self._packed = recipe.batch.packing and self._can_pack()
        self._interval = Interval(self._new_sums())
        self._whole = Interval(self._new_sums())
        self.total = total_steps(recipe.max_steps, recipe.epochs, data.order.steps_per_epoch)

    def run(
        self, start: int = 0, display: Display | None = None, profile: int | None = None
    ) -> None:
        """Make the steps after `start`, up to the last, and show them on `display`; `profile` some.

        Raises:
            AlignError: the loss or its gradient is no number, too many rows cannot be used, or a
                checkpoint cannot be written.
        """
        self._display = display or self._display
        order, every = self._data.order, self._recipe.checkpoint.every
        plan = order.plan(order.position(start), order.position(self.total))
        batches = self._data.train.batches(plan)
        self._engine.train()
        with profiling(self._folder, profile, self.total - start) as profiled:
            for step in range(start, self.total):
                self._step(step, batches)
                done = step + 1
                last = done == self.total
                if done % self._recipe.log.every == 0 or last:
                    self._record(done)
                if done % self._recipe.log.validate_every == 0 or last:
                    self._validate(done)
                if done % every == 0 or last:
                    self.save(done)
                profiled()

    def ending(self) -> dict[str, Any]:
        """How the run ended, over all ranks: its last losses, and since it was last started how
        many rows were rejected or cut, and how fast it was (`throughput`, None without a step).
        """
        counts: list[Any] = [None] * self._ranks
        torch.distributed.all_gather_object(counts, self._data.train.counts)
        rejected = sum((count.rejected for count in counts), Counter[str]())
        lines = read_metrics(self._folder)
        last = {
            name: next((line[name] for line in reversed(lines) if name in line), None)
            for name in ("loss", "validation_loss")
        }
        return {
            "steps": self.total,
            **last,
            "rejected": dict(rejected),
            "truncated": sum(count.truncated for count in counts),
            "throughput": self._speed_over(self._whole) if self._whole.steps else None,
        }

    def save(self, done: int) -> None:
        """Write a checkpoint of the run after `done` steps."""
        order = self._data.order
        meta = {
            "step": done,
            "position": order.state(order.position(done)),
            "model": model_identity(self._engine.module.config),
            "recipe": self._recipe.settings,
        }
        state = MasterState(self._engine)
        save_checkpoint(self._folder, state, meta, keep=self._recipe.checkpoint.keep)

    def _step(self, step: int, batches: Iterator[Any]) -> None:
        began = time.perf_counter()
        rates = set_rates(self._engine, self._factor(step))
        torch.manual_seed(_seed(self._recipe.seed, step, self._rank))
        with part("data"):
            micro = list(itertools.islice(batches, self._micro_batches))
        waited = time.perf_counter() - began
        tokens = self._labelled(micro)
        sums = self._new_sums()
        sums["wait_s"] = waited
        unsound: list[str] = []
        for number, batch in enumerate(micro):
            with part("forward"):
                output = self._engine(**self._inputs(batch), num_items_in_batch=tokens)
            with part("backward"):
                # DeepSpeed averages over ranks; the division by all tokens is in the loss already.
                self._engine.backward(output.loss * self._ranks, scale_wrt_gas=False)
            sums.add(batch, output, packed=self._packed)
            unsound += _not_finite(batch, output)
            if number < len(micro) - 1:
                self._engine.step()
        sums.reduce()
        if not math.isfinite(sums.loss):
            self._stop("loss", step, micro, unsound)
        with part("optimizer"):
            norm = self._apply(step, micro)
        self._count(sums, time.perf_counter() - began, norm, rates)
        self._display.step(step + 1, sums.loss, sums["read"])

    def _apply(self, step: int, micro: list[Any]) -> float:
        """Let the optimizer step; the norm of the gradients before clipping."""
        norm = _own_norm(self._engine)
        if norm is None:
            self._engine.step()
            norm = _norm(self._engine.get_global_grad_norm())
            # fp16 skips a step and goes on with a smaller loss scale.
            skipped = self._engine.fp16_enabled() and not self._engine.was_step_applied()
            sound = skipped or math.isfinite(norm)
        else:
            sound = math.isfinite(norm)
            if sound:
                self._engine.step()
        if not sound:
            self._stop("gradient", step, micro, [])
        return norm

    def _stop(self, what: str, step: int, micro: list[Any], unsound: list[str]) -> None:
        """Say that a run cannot go on, and on what it was working. All ranks come here together."""
        mine = {
            "unsound": unsound,
            "samples": [id_ for batch in micro for id_ in batch["ids"] if id_],
        }
        parts: list[Any] = [None] * self._ranks
        torch.distributed.all_gather_object(parts, mine)
        samples = [id_ for part in parts for id_ in part["samples"]]
        worst = [id_ for part in parts for id_ in part["unsound"]]
        path = self._folder / FAILED
        if self._rank == 0:
            found = {"step": step + 1, "what": what, "not_finite": worst, "samples": samples}
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        named = worst or samples
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        raise AlignError(
            f"the {what} of step {step + 1} is not a finite number, at the samples "
            f"{', '.join(named[:_NAMED])}{more} (all of the batch are in {path}); the last "
            "checkpoint stays as it is: look at them, or lower optimizer.lr, or take precision "
            "bf16 for fp16, then start anew or --resume."
        )

    def _labelled(self, micro: list[Any]) -> int:
        """Labelled tokens in the micro-batches of all ranks, at least 1."""
        # A label says what comes after the place before it, so one in the first place is not read.
        count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in micro)
        tokens = torch.tensor(count, device=self._device)
        torch.distributed.all_reduce(tokens)
        return max(1, int(tokens))

    def _inputs(self, batch: Any) -> dict[str, Any]:
        names = ("input_ids", "attention_mask", "pixel_values", "labels", "levels")
        inputs = {
            name: None if batch[name] is None else batch[name].to(self._device, non_blocking=True)
            for name in names
        }
        if self._recipe.phase != "pretrain" or self._recipe.model.mixing == "none":
            inputs["levels"] = None  # mixed by the gate, or not at all
        if self._packed:
            most = self._recipe.batch.logits_bytes
            return {**inputs, "packed": True, "logits_bytes": most, "use_cache": False}
        # The head is a large part of a small LLM, and most positions are the image's.
        places = predicting_places(batch["labels"]).to(self._device)
        return {**inputs, "logits_to_keep": places, "use_cache": False}

    def _can_pack(self) -> bool:
        problem = self._engine.module.prepare_packing()
        if problem is not None:
            log.warning("this LLM cannot read packed samples (%s), so batches are padded.", problem)
        return problem is None

    def _validate(self, done: int) -> None:
        data = self._data
        if not len(data.validation_rows):
            return
        sums = self._new_sums()
        rows = in_turn(data.validation_rows, self._recipe.batch.global_size)
        self._engine.eval()
        with torch.no_grad():
            for batch in data.validation.batches(rows):
                sums.add(batch, self._engine(**self._inputs(batch)), packed=self._packed)
        self._engine.train()
        sums.reduce()
        finite = math.isfinite(sums.loss)
        self._write(
            {
                "step": done,
                "validation_loss": sums.loss if finite else None,
                "validation_loss_by_level": sums.loss_by_level if finite else {},
                "validation_samples": int(sums["rows"]),
                **{f"validation_{name}": value for name, value in sums.gate.items()},
            }
        )
        self._display.validated(sums.loss)

    def _count(self, sums: Sums, seconds: float, norm: float, rates: dict[str, float]) -> None:
        for interval in (self._interval, self._whole):
            interval.sums.merge(sums)
            interval.steps += 1
            interval.seconds += seconds
            interval.gradient_norm, interval.rates = norm, rates

    def _speed_over(self, interval: Interval) -> dict[str, float]:
        return self._speed.over(interval.sums, interval.steps, interval.seconds)

    def _record(self, done: int) -> None:
        interval, self._interval = self._interval, Interval(self._new_sums())
        sums = interval.sums
        position = self._data.order.position(done)
        norm = interval.gradient_norm if math.isfinite(interval.gradient_norm) else None
        line = {
            "step": done,
            "epoch": position.epoch + position.step / self._data.order.steps_per_epoch,
            "loss": sums.loss,
            "loss_by_level": sums.loss_by_level,
            "learning_rate": interval.rates,
            "gradient_norm": norm,  # None where fp16 skipped the step
            **self._speed_over(interval),
            **sums.gate,
        }
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        if self._recorder is not None:
            self._recorder.write(line)

    def _factor(self, step: int) -> float:
        settings = self._recipe.optimizer
        return rate_factor(step, self.total, settings.warmup_ratio, settings.schedule)

    def _new_sums(self) -> Sums:
        return Sums(self._recipe.model.levels, self._device)


def _seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each step and rank."""
    return hash((seed, step, rank)) & 0x7FFF_FFFF_FFFF_FFFF


def _not_finite(batch: Any, output: Any) -> list[str]:
    """Ids of the rows whose loss is no number."""
    sound = output.sample_loss.isfinite().tolist()
    return [id_ for id_, fine in zip(batch["ids"], sound, strict=True) if not fine]


def _own_norm(engine: Any) -> float | None:
    """The norm of all gradients where DeepSpeed keeps none.

    The gradients are those of all ranks by then.
    """
    if not is_plain(engine):
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _norm(norm: Any) -> float:
    # DeepSpeed gives -1 for one that is no number.
    return math.nan if norm is None or float(norm) < 0 else float(norm)
