"""Training loop: optimizer steps, validations and checkpoints, from the run's current position.

The loss of a step is the (weighted) mean over the labelled tokens of its whole global batch, across
ranks and micro-batches. So neither the number of ranks nor `batch.micro_size` changes the loss or
the gradients, except by rounding; averaging the means of micro-batches, as LLaVA's trainer does,
would give the tokens of short answers more weight with more ranks.

With a cooldown, its steps read rows as plain LLaVA does, while table and gate stay as they are.
"""

import itertools
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignshared import AlignError
from alignshared.console import progress
from aligntrain.data.loader import Batch, Counts, Loader, RankSlice
from aligntrain.data.sampler import GlobalBatchSampler, Rows, sequential_batches
from aligntrain.model.losses import label_positions
from aligntrain.prompts.placeholders import IGNORE_INDEX
from aligntrain.recipes import Recipe
from aligntrain.recipes.schema import Schedule
from aligntrain.runs.folder import PLAIN_LOSS, newest_metrics
from aligntrain.train.checkpoint import model_identity, save_checkpoint
from aligntrain.train.deepspeed_engine import Engine, MasterState, is_plain, set_rates
from aligntrain.train.loggers import Recorder
from aligntrain.train.metrics import Flops, Speed, Sums, peak_flops
from aligntrain.train.phases import Part
from aligntrain.train.profiling import part, profiling

FAILED = "failed-step.json"
"""File listing the samples of a step whose loss or gradient was NaN or infinite."""

_OF_VECTORS: tuple[Part, ...] = ("table", "gate")
"""Parts that rest in a cooldown."""

_MAX_NAMED = 8

log = logging.getLogger("aligntrain")


def total_steps(max_steps: int | None, epochs: float, steps_per_epoch: int) -> int:
    """Return the optimizer steps: `max_steps`, or those of `epochs` rounded down, at least one."""
    return max_steps or max(1, int(epochs * steps_per_epoch))


def cooldown_start(total: int, share: float | None) -> int:
    """Return the first step, of 0..`total` - 1, of the cooldown; `total` without one.

    The cooldown is the last `share` of all steps, rounded, but at least one.
    """
    return total - max(1, round(total * share)) if share else total


def warmup_steps(total: int, ratio: float) -> int:
    """Return the warm-up steps: `ratio` of all, rounded up as in transformers."""
    return min(math.ceil(total * ratio), total)


def rate_factor(step: int, total: int, warmup_ratio: float, schedule: Schedule) -> float:
    """Return the multiplier of the highest learning rate in step `step` of 0..`total` - 1.

    It rises in equal parts from 1 / (warm-up + 1) to 1, then stays there (`constant`) or falls to 0
    along a half cosine, which it would reach in step `total` (Loshchilov and Hutter 2017, without
    restarts). transformers begins at 0 instead, which wastes a run's first step.

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


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Batch sampler plus this rank's training and validation loaders."""

    order: GlobalBatchSampler
    share: RankSlice
    train: Loader
    validation: Loader
    validation_rows: Rows


class Trainer:
    """Trainer of the model in `engine` on `data` by `recipe`, in the run folder `folder`.

    Only rank 0 has a `recorder`.
    """

    def __init__(
        self,
        engine: Engine,
        data: TrainingData,
        recipe: Recipe,
        *,
        folder: Path,
        recorder: Recorder | None = None,
    ) -> None:
        self._engine, self._data, self._recipe = engine, data, recipe
        self._folder, self._recorder = folder, recorder
        self._device = next(engine.module.parameters()).device
        self._rank = torch.distributed.get_rank()
        self._ranks = torch.distributed.get_world_size()
        self._micro_batches = data.share.micro_batches(recipe.batch.global_size)
        self._speed = Speed(self._ranks, Flops.of(engine.module), peak_flops(self._device))
        problem = engine.module.prepare_packing() if recipe.batch.packing else None
        if problem is not None:
            log.warning("this LLM cannot read packed samples (%s), so batches are padded.", problem)
        self._packed = recipe.batch.packing and problem is None
        # Sums since the last line of metrics, and since the start.
        self._interval, self._whole = self._new_sums(), self._new_sums()
        self._gradient_norm, self._rates = math.nan, dict[str, float]()
        self.total = total_steps(recipe.max_steps, recipe.epochs, data.order.steps_per_epoch)
        share = None if recipe.model.mixing == "none" else recipe.cooldown
        self._cooldown = cooldown_start(self.total, share)

    def run(
        self, start: int = 0, console: Console | None = None, profile: int | None = None
    ) -> None:
        """Make the steps after `start`, show them on `console`, and profile `profile` of them.

        Raises:
            AlignError: the loss or its gradient is not finite, too many rows cannot be used, or a
                checkpoint cannot be written.
        """
        recipe, batches = self._recipe, self._batches(start)
        self._engine.train()
        began, held_out = time.monotonic(), ""
        with (
            progress(recipe.phase, self.total, console, begun=start, transient=False) as show,
            profiling(self._folder, profile, self.total - start) as profiled,
        ):
            show(start, "starting", "starting")
            for step in range(start, self.total):
                loss = self._step(step, batches)
                done = step + 1
                last = done == self.total
                seconds = time.monotonic() - began
                rate = self._whole["read"] / max(seconds, 1e-9)
                left = timedelta(seconds=round((self.total - done) * seconds / (done - start)))
                state = f"loss {loss:.4f}{held_out}, {rate:,.0f} tokens/s"
                line = f"{recipe.phase}: step {done:,} of {self.total:,}, {state}, {left} left"
                show(done, state, line, last=last)
                if done % recipe.log.every == 0 or last:
                    self._record(done)
                if len(self._data.validation_rows) and (
                    done % recipe.log.validate_every == 0 or last
                ):
                    held_out = f" (held out {self._validate(done)})"
                if done % recipe.checkpoint.every == 0 or last:
                    self._save(done)
                profiled()

    def result(self) -> dict[str, Any]:
        """Return the run's result over all ranks.

        Its last losses and, since the last start, the counts of rejected and truncated rows and the
        speed (`throughput`, None without a step).
        """
        counts: list[Counts] = [Counts()] * self._ranks
        torch.distributed.all_gather_object(counts, self._data.train.counts)
        rejected = sum((count.rejected for count in counts), Counter[str]())
        newest = newest_metrics(self._folder)
        return {
            "steps": self.total,
            "loss": newest.get("loss"),
            "validation_loss": newest.get("validation_loss"),
            **({PLAIN_LOSS: newest[PLAIN_LOSS]} if PLAIN_LOSS in newest else {}),
            "rejected": dict(rejected),
            "truncated": sum(count.truncated for count in counts),
            "throughput": self._speed.over(self._whole) if self._whole["steps"] else None,
        }

    def _save(self, done: int) -> None:
        order = self._data.order
        meta = {
            "step": done,
            "position": order.state(order.position(done)),
            "model": model_identity(self._engine.module.config),
            "recipe": self._recipe.settings,
        }
        state = MasterState(self._engine)
        save_checkpoint(self._folder, state, meta, keep=self._recipe.checkpoint.keep)

    def _batches(self, start: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches after `start`, those of the cooldown without `align`."""
        order, cooldown = self._data.order, max(start, self._cooldown)
        for first, stop, align in ((start, cooldown, True), (cooldown, self.total, False)):
            if first < stop:
                if not align:
                    log.info("steps from %d on train without alignment vectors.", first + 1)
                plan = order.plan(order.position(first), order.position(stop))
                yield from self._data.train.batches(plan, align=align)

    def _step(self, step: int, batches: Iterator[Batch]) -> float:
        """Make a step; return its loss."""
        began = time.perf_counter()
        settings = self._recipe.optimizer
        factor = rate_factor(step, self.total, settings.warmup_ratio, settings.schedule)
        align = step < self._cooldown
        self._rates = set_rates(self._engine, factor, resting=() if align else _OF_VECTORS)
        # Drawn anew in every step: a run that resumes needs no state of random numbers.
        torch.manual_seed(step_seed(self._recipe.seed, step, self._rank))
        with part("data"):
            micro = list(itertools.islice(batches, self._micro_batches))
        sums = self._new_sums()
        sums["wait_s"] = time.perf_counter() - began
        # Summed over all ranks before the first forward pass, since every loss is divided by it.
        items = self._sum_weights(micro)
        not_finite: list[str] = []
        with self._attention():
            for number, batch in enumerate(micro):
                with part("forward"):
                    inputs = self._inputs(batch, align=align)
                    output = self._engine(**inputs, num_items_in_batch=items)
                # There are labels.
                assert output.loss is not None and output.sample_loss is not None
                with part("backward"):
                    # DeepSpeed divides the sum of gradients by the ranks, which the division by the
                    # tokens of all ranks has done already; so too of micro-batches (`wrt_gas`).
                    self._engine.backward(output.loss * self._ranks, scale_wrt_gas=False)
                sums.add(batch, output, packed=self._packed)
                finite = output.sample_loss.isfinite().tolist()
                not_finite += [
                    id_ for id_, fine in zip(batch["ids"], finite, strict=True) if not fine
                ]
                if number < len(micro) - 1:
                    # Counts micro-batches; only after the last one the optimizer steps.
                    self._engine.step()
        sums.reduce()
        if not math.isfinite(sums.loss):
            self._stop("loss", step, micro, not_finite)
        with part("optimizer"):
            self._gradient_norm = self._apply(step, micro)
        sums["steps"], sums["seconds"] = 1, time.perf_counter() - began
        self._interval.merge(sums)
        self._whole.merge(sums)
        return sums.loss

    def _attention(self) -> AbstractContextManager[Any]:
        """Choose PyTorch's attention for forward and backward passes.

        On a CPU in 16 bits its fused one is far slower backward than its plain one, as long as rows
        are tens of tokens long.
        """
        if self._device.type == "cpu" and self._recipe.precision != "fp32" and not self._packed:
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def _apply(self, step: int, micro: list[Batch]) -> float:
        """Step the optimizer; return the norm of the gradients before clipping."""
        if is_plain(self._engine):
            # DeepSpeed keeps no norm here. The gradients are those of all ranks by now.
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            healthy = math.isfinite(norm)
            if healthy:
                self._engine.step()
        else:
            self._engine.step()
            reported = self._engine.get_global_grad_norm()
            norm = math.nan if reported is None else float(reported)
            if norm < 0:
                norm = math.nan  # DeepSpeed reports -1 for a norm that is not finite
            # fp16 skips a step that overflows and continues with a smaller loss scale.
            skipped = self._engine.fp16_enabled() and not self._engine.was_step_applied()
            healthy = skipped or math.isfinite(norm)
        if not healthy:
            self._stop("gradient", step, micro, [])
        return norm

    def _stop(self, what: str, step: int, micro: list[Batch], not_finite: list[str]) -> None:
        """Raise an AlignError that names the samples of a failed step; all ranks call it."""
        own = not_finite, [id_ for batch in micro for id_ in batch["ids"] if id_]
        by_rank: list[tuple[list[str], list[str]]] = [own] * self._ranks
        torch.distributed.all_gather_object(by_rank, own)
        not_finite = [id_ for ids, _ in by_rank for id_ in ids]
        samples = [id_ for _, ids in by_rank for id_ in ids]
        path = self._folder / FAILED
        if self._rank == 0:
            report = {"step": step + 1, "what": what, "not_finite": not_finite, "samples": samples}
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        named = not_finite or samples
        more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
        raise AlignError(
            f"the {what} of step {step + 1} is not a finite number, at the samples "
            f"{', '.join(named[:_MAX_NAMED])}{more} (all of the batch are in {path}); the last "
            "checkpoint stays as it is: look at them, or lower optimizer.lr, or take precision "
            "bf16 for fp16, then start anew or --resume."
        )

    def _sum_weights(self, micro: list[Batch]) -> float:
        """Return the labelled tokens in the micro-batches of all ranks, or the sum of their
        weights; 1 if it would be 0.
        """
        total = 0.0
        for batch in micro:
            # A label is predicted from the position before it, so one at the first is ignored.
            tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1).double()  # [B]
            weights = batch["weights"]
            total += float(tokens.sum() if weights is None else tokens @ weights.double())
        summed = torch.tensor(total, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(summed)
        return float(summed) or 1.0

    def _inputs(self, batch: Batch, *, align: bool) -> dict[str, Any]:
        """Return the arguments of the model's forward pass, on this rank's device."""
        names = ("input_ids", "attention_mask", "pixel_values", "labels", "levels")
        weights = batch["weights"]
        inputs: dict[str, Any] = {
            "align": align,
            "loss_weights": None if weights is None else weights.to(self._device),
        }
        for name in names:
            value = batch[name]
            inputs[name] = None if value is None else value.to(self._device, non_blocking=True)
        if self._recipe.phase != "pretrain" or self._recipe.model.mixing == "none":
            inputs["levels"] = None  # mixed by the gate, or unused
        if self._packed:
            most = self._recipe.batch.logits_bytes
            return {**inputs, "packed": True, "logits_bytes": most, "use_cache": False}
        # The head is a large part of a small LLM, and most positions are the image's.
        places = label_positions(batch["labels"]).to(self._device)
        return {**inputs, "logits_to_keep": places, "use_cache": False}

    def _validate(self, done: int) -> str:
        """Record the losses of the held-out rows after `done` steps; return their means in words.

        They are read with alignment vectors as after every other step, and in the cooldown also
        without.
        """
        sums = self._held_out_sums(align=True)
        finite = math.isfinite(sums.loss)
        line: dict[str, Any] = {
            "step": done,
            "validation_loss": sums.loss if finite else None,
            "validation_loss_by_level": sums.loss_by_level if finite else {},
            "validation_samples": int(sums["rows"]),
            **{f"validation_{name}": value for name, value in sums.gate.items()},
        }
        words = f"{sums.loss:.4f}"
        if done > self._cooldown:
            plain = self._held_out_sums(align=False).loss
            line[PLAIN_LOSS] = plain if math.isfinite(plain) else None
            words += f", without vectors {plain:.4f}"
        self._write(line)
        return words

    def _held_out_sums(self, *, align: bool) -> Sums:
        """Return the sums over the held-out rows of all ranks."""
        data, sums = self._data, self._new_sums()
        rows = sequential_batches(data.validation_rows, self._recipe.batch.global_size)
        self._engine.eval()
        with torch.no_grad():
            for batch in data.validation.batches(rows, align=align):
                output = self._engine(**self._inputs(batch, align=align))
                sums.add(batch, output, packed=self._packed)
        self._engine.train()
        sums.reduce()
        return sums

    def _record(self, done: int) -> None:
        sums, self._interval = self._interval, self._new_sums()
        position = self._data.order.position(done)
        norm = self._gradient_norm if math.isfinite(self._gradient_norm) else None
        line = {
            "step": done,
            "epoch": position.epoch + position.step / self._data.order.steps_per_epoch,
            "loss": sums.loss,
            "loss_by_level": sums.loss_by_level,
            "learning_rate": self._rates,
            "gradient_norm": norm,  # None where fp16 skipped the step
            **self._speed.over(sums),
            **sums.gate,
        }
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        if self._recorder is not None:
            self._recorder.write(line)

    def _new_sums(self) -> Sums:
        return Sums(self._recipe.model.levels, self._device)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of the random numbers (dropout, say) of a step on a rank.

    The three numbers, each from 0 to 2^61 - 2, are mixed by the rounds of xxHash64.
    """
    mask = (1 << 64) - 1
    mixed = _PRIME_5
    for number in (seed, step, rank):
        mixed = (mixed + number * _PRIME_2) & mask
        mixed = (mixed << 31 | mixed >> 33) & mask
        mixed = mixed * _PRIME_1 & mask
    return (mixed + (3 ^ _PRIME_5 ^ 3527539)) & mask >> 1


_PRIME_1, _PRIME_2, _PRIME_5 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x27D4EB2F165667C5
