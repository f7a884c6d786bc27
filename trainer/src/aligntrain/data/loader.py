"""Worker processes that read, tokenize, decode and collate the micro-batches of a plan.

The plan (`order.py`) is made in the trainer's process and sent to the workers as row numbers, so
what comes out, and in which order, does not depend on how many workers there are.
"""

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from alignshared import AlignError, InputError
from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.sampler import GlobalBatch, Rows, rank_part
from aligntrain.data.samples import Sample, decode_sample_image, make_sample
from aligntrain.prompts.conversation import InvalidSample
from aligntrain.prompts.encode import Encoder
from aligntrain.prompts.placeholders import IGNORE_INDEX


class Batch(TypedDict):
    """A micro-batch of B rows of at most T tokens, padded on the right, with I images in all.

    `input_ids`, `attention_mask`, `labels` [B, T] int64; `pixel_values` [I, 3, H, W] float32 in
    reading order, None without images; `levels` [B] int64, 0 for rows that have none; `ids` [B].
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor | None
    levels: torch.Tensor
    ids: list[str]


def collate(samples: Sequence[Sample], pixels: Sequence[torch.Tensor], pad_id: int) -> Batch:
    """`samples` as a batch; `pixels` are their images [3, H, W] in reading order.

    Without any sample, the batch is one row of one token that is text and is not learned, so that
    a rank whose rows were all rejected still takes part in the step.
    """
    if not samples:
        samples = [Sample("", [pad_id], [IGNORE_INDEX], [], 0, truncated=False)]
    size = len(samples), max(sample.length for sample in samples)
    input_ids = torch.full(size, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(size, dtype=torch.int64)
    labels = torch.full(size, IGNORE_INDEX, dtype=torch.int64)
    for row, sample in enumerate(samples):
        input_ids[row, : sample.length] = torch.tensor(sample.ids)
        attention_mask[row, : sample.length] = 1
        labels[row, : sample.length] = torch.tensor(sample.labels)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        pixel_values=torch.stack(list(pixels)) if pixels else None,
        levels=torch.tensor([sample.level for sample in samples]),
        ids=[sample.id for sample in samples],
    )


log = logging.getLogger("aligntrain")

LEAST_SEEN = 100
"""Rejects are held against this many rows at least: one in the first ten rows is not a tenth."""

_SHOWN = 10
_AHEAD = 4

Pixels = Callable[[Image.Image], torch.Tensor]
"""An RGB image as the vision tower takes it, [3, H, W] float32."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a row becomes tensors; sent to the workers. `pad_id` fills rows up to their batch."""

    encoder: Encoder
    pixels: Pixels
    pad_id: int

    @classmethod
    def of(cls, processor: Any, *, template: str, max_length: int) -> "Preparation":
        """What an AlignGPTProcessor does, in `template` and at most `max_length` tokens.

        Raises:
            InputError: the template or the length is not to be had with this processor.
        """
        tokenizer = processor.tokenizer
        encoder = Encoder(tokenizer, processor.layout, template, max_length)
        ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(id_ for id_ in ends if id_ is not None)  # masked: any token will do
        return cls(encoder, _PixelsOf(processor), pad_id)


@dataclass(frozen=True, slots=True)
class _PixelsOf:
    processor: Any

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return self.processor.pixel_values([picture])[0]


@dataclass(frozen=True, slots=True)
class RankSlice:
    """This process among the `ranks` that work on a run, and the rows it takes at once."""

    micro_size: int
    rank: int = 0
    ranks: int = 1

    def micro_batches(self, global_size: int) -> int:
        """Micro-batches of each rank in a full global batch: the gradient accumulation steps.

        Raises:
            InputError: the sizes do not divide.
        """
        at_once = self.micro_size * self.ranks
        if global_size % at_once:
            raise InputError(
                f"batch.global_size {global_size} is no multiple of {at_once}, which is "
                f"batch.micro_size {self.micro_size} times {self.ranks} processes; change one of "
                "them."
            )
        return global_size // at_once

    def of(self, rows: Rows) -> list[list[int]]:
        """This rank's micro-batches of a global batch; of equal number on all ranks, so the last
        may be smaller, or empty, where `rows` is not full.
        """
        longest = -(-len(rows) // self.ranks)
        mine = rank_part(rows, self.rank, self.ranks).tolist()
        return [mine[at : at + self.micro_size] for at in range(0, longest, self.micro_size)]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that could not be trained on."""

    row: int
    id: str
    reason: str
    detail: str


@dataclass(slots=True)
class Counts:
    """What this rank has met: rows, rejects by reason, and samples cut to the longest length."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter[str])
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    batch: Batch
    rows: int
    rejected: list[Rejected]
    truncated: int


class Loader:
    """Micro-batches of `shards` on `workers` processes (0: in this one).

    `counts` grows with what is yielded; `on_rejected` is called with each reject.
    """

    def __init__(
        self,
        shards: ShardedDataset,
        preparation: Preparation,
        share: RankSlice,
        *,
        workers: int = 0,
        max_reject_share: float = 0.01,
        on_rejected: Callable[[Rejected], None] | None = None,
    ) -> None:
        self._shards = shards
        self._preparation = preparation
        self._share = share
        self._workers = workers
        self._max_reject_share = max_reject_share
        self._on_rejected = on_rejected
        self.counts = Counts()

    def batches(self, plan: Iterable[GlobalBatch]) -> Generator[Batch, None, None]:
        """This rank's micro-batches of `plan`, in order; as many for each step on all ranks.

        Workers live as long as the iterator: close it, or let go of it, and they end.

        Raises:
            AlignError: more rows were rejected than `max_reject_share` allows, or a worker died.
            InputError: the dataset is damaged.
        """
        work = _Work(self._shards, self._preparation)
        micro = (rows for step in plan for rows in self._share.of(step.rows))
        source = _begin(self._loader(work, micro))
        try:
            while (prepared := _next(source)) is not None:
                if isinstance(prepared, AlignError):
                    raise prepared
                self._count(prepared)
                yield prepared.batch
        finally:
            del source  # ends the workers

    def _loader(self, work: "_Work", micro: Iterable[list[int]]) -> DataLoader[object]:
        multi = self._workers > 0
        if multi:
            # Forked processes need no thread pool of the tokenizers, whose threads would be lost.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return DataLoader(
            work,
            batch_size=None,
            sampler=micro,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=_set_up_worker if multi else None,
            prefetch_factor=_AHEAD if multi else None,
            # A connection to an object store does not survive a fork.
            multiprocessing_context=_context(self._shards.location) if multi else None,
            # The default generator belongs to the training and is left as it is.
            generator=torch.Generator(),
        )

    def _count(self, prepared: _Prepared) -> None:
        counts = self.counts
        counts.rows += prepared.rows
        counts.truncated += prepared.truncated
        for reject in prepared.rejected:
            counts.rejected[reject.reason] += 1
            shown = counts.rejected.total() <= _SHOWN
            log.log(
                logging.WARNING if shown else logging.INFO,
                "row %d (%s) of %s cannot be trained on: %s (%s)",
                reject.row,
                reject.id,
                self._shards.location,
                reject.detail,
                reject.reason,
            )
            if self._on_rejected is not None:
                self._on_rejected(reject)
        if prepared.rejected:
            self._check_share(prepared.rejected[-1])

    def _check_share(self, last: Rejected) -> None:
        counts = self.counts
        rejected = counts.rejected.total()
        if rejected > self._max_reject_share * max(counts.rows, LEAST_SEEN):
            why, times = counts.rejected.most_common(1)[0]
            raise AlignError(
                f"{rejected} of {counts.rows} rows of {self._shards.location} cannot be trained "
                f"on, more than data.max_reject_share {self._max_reject_share} allows ({times} for "
                f"{why}; the last, {last.id}: {last.detail}); mend the data or raise the share."
            )


class _Work(Dataset[object]):
    """Prepares a micro-batch from its row numbers; lives in the workers."""

    def __init__(self, shards: ShardedDataset, preparation: Preparation) -> None:
        self.shards = shards
        self._preparation = preparation

    def __getitem__(self, rows: list[int]) -> _Prepared | AlignError:
        """The micro-batch, or what stops the run, which torch would bury in a traceback."""
        try:
            return self._prepare(rows)
        except AlignError as error:
            return error

    def _prepare(self, rows: list[int]) -> _Prepared:
        samples: list[Sample] = []
        pixels: list[torch.Tensor] = []
        rejected: list[Rejected] = []
        for number in rows:
            row = self.shards.row(number)
            try:
                sample = make_sample(row, self._preparation.encoder)
                pictures = [decode_sample_image(image) for image in sample.images]
            except InvalidSample as problem:
                rejected.append(Rejected(number, row.id, problem.reason.value, problem.detail))
                continue
            samples.append(sample)
            pixels += [self._preparation.pixels(picture) for picture in pictures]
        batch = collate(samples, pixels, self._preparation.pad_id)
        truncated = sum(sample.truncated for sample in samples)
        return _Prepared(batch, len(rows), rejected, truncated)


def _next(source: Iterator[object]) -> _Prepared | AlignError | None:
    try:
        item = next(source, None)
    except (RuntimeError, EOFError, ConnectionError) as error:
        # Which of these it is depends on what the worker was doing.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise AlignError(
            f"a data worker ended without a word ({said}), as when memory runs out; set "
            "data.workers lower, and look at the size of /dev/shm in a container."
        ) from error
    assert item is None or isinstance(item, _Prepared | AlignError)
    return item


def _as_it_is(item: object) -> object:
    return item


def _context(location: str) -> str:
    return "forkserver" if "://" in location else "fork"


def _begin(loader: DataLoader[object]) -> Iterator[object]:
    """Start the workers. torch's handler of SIGCHLD, which would raise in the middle of a training
    step when a worker dies, is taken out again: the next batch that is asked for tells of it.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)  # torch sets no handler either
    before = signal.getsignal(signal.SIGCHLD)
    source = iter(loader)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
    return source


def _set_up_worker(_worker: int) -> None:
    # Ctrl-C goes to every process of the terminal; the trainer's own ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _Work):
        info.dataset.shards.reopen()
