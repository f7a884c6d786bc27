"""Loader: worker processes that read, tokenize, decode and collate micro-batches.

The trainer's process plans the batches (`sampler`) and sends row numbers to the workers, so the
result and its order do not depend on the number of workers.
"""

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Protocol, TypedDict

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from alignshared import AlignError, InputError
from aligntrain.data.dataset import Row, ShardedDataset, decode_sample_image
from aligntrain.data.sampler import GlobalBatch, Rows, rank_part
from aligntrain.prompts.conversation import InvalidSample, Reason
from aligntrain.prompts.encode import Encoder
from aligntrain.prompts.placeholders import IGNORE_INDEX, Layout

log = logging.getLogger("aligntrain")

LEAST_SEEN = 100
"""Minimum denominator of the share of rejects: one in the first ten rows is not a tenth."""

_SHOWN = 10
"""Rejects logged as warnings; later ones are logged at level info."""
_AHEAD = 4
"""Micro-batches that each worker prepares in advance."""

Pixels = Callable[[Image.Image], torch.Tensor]
"""Function from an RGB image to the vision tower's input [3, H, W] float32."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Training sample: `ids` and `labels` of equal length, `images` in reading order.

    `level` is 1..N, or 0 without an image or a level; `weight` is of its tokens in the loss.
    """

    id: str
    ids: list[int]
    labels: list[int]
    images: list[bytes]
    level: int
    truncated: bool
    weight: float | None = None

    @property
    def length(self) -> int:
        """Tokens in the sequence, including images and the alignment vector."""
        return len(self.ids)

    @property
    def has_image(self) -> bool:
        """Whether the sample has an image and so an alignment vector."""
        return bool(self.images)


def make_sample(row: Row, encoder: Encoder) -> Sample:
    """Return `row` as a sample; raise InvalidSample if it lacks something or is too long."""
    if row.image == b"":
        raise InvalidSample(Reason.NO_IMAGE, "the shard holds a path and no image")
    images = [] if row.image is None else [row.image]
    tokens = encoder(row.caption, row.turns, len(images))
    images = images[: tokens.images]
    return Sample(
        id=row.id,
        ids=tokens.ids,
        labels=tokens.labels,
        images=images,
        level=row.level or 0 if images else 0,
        truncated=tokens.truncated,
        weight=row.weight,
    )


class Processor(Protocol):
    """Part of an AlignGPTProcessor used by data preparation."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def layout(self) -> Layout: ...

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor: ...


class Batch(TypedDict):
    """Micro-batch: B rows padded on the right to T tokens, with I images in all."""

    input_ids: torch.Tensor  # [B, T] int64
    attention_mask: torch.Tensor  # [B, T] int64
    labels: torch.Tensor  # [B, T] int64
    pixel_values: torch.Tensor | None  # [I, 3, H, W] float32 in reading order, None without images
    levels: torch.Tensor  # [B] int64, 0 in rows without a level
    weights: torch.Tensor | None  # [B] float32, None without weights
    ids: list[str]  # [B]


def collate(samples: Sequence[Sample], pixels: Sequence[torch.Tensor], pad_id: int) -> Batch:
    """Pad `samples` to a batch; `pixels` are their images [3, H, W] in reading order."""
    if not samples:
        # One token without a label: a rank whose rows were all rejected still joins the step.
        samples = [Sample("", [pad_id], [IGNORE_INDEX], [], 0, truncated=False)]
    size = len(samples), max(sample.length for sample in samples)
    input_ids = torch.full(size, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(size, dtype=torch.int64)
    labels = torch.full(size, IGNORE_INDEX, dtype=torch.int64)
    for row, sample in enumerate(samples):
        input_ids[row, : sample.length] = torch.tensor(sample.ids)
        attention_mask[row, : sample.length] = 1
        labels[row, : sample.length] = torch.tensor(sample.labels)
    weights = [sample.weight for sample in samples if sample.weight is not None]
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        pixel_values=torch.stack(list(pixels)) if pixels else None,
        levels=torch.tensor([sample.level for sample in samples]),
        weights=torch.tensor(weights) if weights else None,
        ids=[sample.id for sample in samples],
    )


@dataclass(frozen=True, slots=True)
class Preparation:
    """Settings and functions that turn a row into tensors; sent to the workers."""

    encoder: Encoder
    pixels: Pixels
    pad_id: int

    @classmethod
    def of(cls, processor: Processor, *, template: str, max_length: int) -> "Preparation":
        """Return the preparation by `processor`, in `template` and at most `max_length` tokens.

        Raises:
            InputError: the processor has no such template, or the length is too small.
        """
        tokenizer = processor.tokenizer
        encoder = Encoder(tokenizer, processor.layout, template, max_length)
        ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(id_ for id_ in ends if id_ is not None)  # any token: it is masked
        return cls(encoder, partial(_pixels, processor), pad_id)  # pyright: ignore[reportArgumentType]

    def without_align(self) -> "Preparation":
        """Return this preparation without alignment placeholders."""
        return replace(self, encoder=self.encoder.without_align())


def _pixels(processor: Processor, image: Image.Image) -> torch.Tensor:
    return processor.pixel_values([image])[0]


@dataclass(frozen=True, slots=True)
class RankSlice:
    """Part of each global batch handled by `rank` of `ranks`, `micro_size` rows at a time."""

    micro_size: int
    rank: int = 0
    ranks: int = 1

    def micro_batches(self, global_size: int) -> int:
        """Return the micro-batches per rank in a global batch; InputError if not a whole number."""
        per_step = self.micro_size * self.ranks
        if global_size % per_step:
            raise InputError(
                f"batch.global_size {global_size} is no multiple of {per_step}, which is "
                f"batch.micro_size {self.micro_size} times {self.ranks} processes; change one of "
                "them."
            )
        return global_size // per_step

    def of(self, rows: Rows) -> list[list[int]]:
        """Return this rank's micro-batches of a global batch, equally many on all ranks.

        If `rows` is not a full batch, the last may be smaller or empty.
        """
        longest = -(-len(rows) // self.ranks)
        part = rank_part(rows, self.rank, self.ranks).tolist()
        return [part[i : i + self.micro_size] for i in range(0, longest, self.micro_size)]


@dataclass(frozen=True, slots=True)
class Rejected:
    """Row that could not become a sample."""

    row: int
    id: str
    reason: str
    detail: str


@dataclass(slots=True)
class Counts:
    """Totals of this rank: rows, rejects by reason, and samples cut to the length limit."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter[str])
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    batch: Batch
    rows: int
    rejected: list[Rejected]
    truncated: int


@dataclass(eq=False)
class Loader:
    """Micro-batches of `shards`, prepared by `workers` processes (0: by this one).

    Each keeps up to `keep` bytes of prepared images for when they come again. `counts` covers the
    yielded batches; `on_rejected` is called with each reject.
    """

    shards: ShardedDataset
    preparation: Preparation
    share: RankSlice
    _: KW_ONLY
    workers: int = 0
    keep: int = 0
    max_reject_share: float = 0.01
    on_rejected: Callable[[Rejected], None] | None = None
    counts: Counts = field(default_factory=Counts, init=False)

    def batches(
        self, plan: Iterable[GlobalBatch], *, align: bool = True
    ) -> Generator[Batch, None, None]:
        """Iterate over this rank's micro-batches of `plan`, equally many per step on all ranks.

        Without `align`, rows have no alignment placeholder, as for a model of mixing `none`. The
        workers end when the iterator is closed or garbage-collected.

        Raises:
            AlignError: more rows were rejected than `max_reject_share` allows, or a worker died.
            InputError: the dataset is damaged.
        """
        micro = (rows for step in plan for rows in self.share.of(step.rows))
        preparation = self.preparation if align else self.preparation.without_align()
        source = _begin(self._loader(micro, preparation))
        try:
            while (prepared := _next(source)) is not None:
                if isinstance(prepared, AlignError):
                    raise prepared
                self._count(prepared)
                yield prepared.batch
        finally:
            del source  # ends the workers

    def _loader(self, micro: Iterable[list[int]], preparation: Preparation) -> DataLoader[object]:
        multi, remote = self.workers > 0, "://" in self.shards.location
        if multi:
            # A thread pool of the tokenizers would lose its threads in the fork.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return DataLoader(
            _Work(self.shards, preparation, self.keep),
            batch_size=None,
            sampler=micro,
            num_workers=self.workers,
            collate_fn=_identity,
            worker_init_fn=_set_up_worker if multi else None,
            prefetch_factor=_AHEAD if multi else None,
            # A connection to an object store does not survive a fork.
            multiprocessing_context=("forkserver" if remote else "fork") if multi else None,
            # Keep torch's default generator for training.
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
                self.shards.location,
                reject.detail,
                reject.reason,
            )
            if self.on_rejected is not None:
                self.on_rejected(reject)
        rejected = counts.rejected.total()
        if rejected > self.max_reject_share * max(counts.rows, LEAST_SEEN) and prepared.rejected:
            last = prepared.rejected[-1]
            why, times = counts.rejected.most_common(1)[0]
            raise AlignError(
                f"{rejected} of {counts.rows} rows of {self.shards.location} cannot be trained "
                f"on, more than data.max_reject_share {self.max_reject_share} allows ({times} for "
                f"{why}; the last, {last.id}: {last.detail}); mend the data or raise the share."
            )


@dataclass(eq=False)
class _Work(Dataset[object]):
    """Map from row numbers to a prepared micro-batch; lives in the workers.

    `room`: bytes of images that it still may keep.
    """

    shards: ShardedDataset
    preparation: Preparation
    room: int
    _kept: dict[bytes, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, rows: list[int]) -> _Prepared | AlignError:
        """Return the micro-batch, or unraised the error that ends the run: torch would wrap it."""
        try:
            return self._prepare(rows)
        except AlignError as error:
            return error

    def _prepare(self, rows: list[int]) -> _Prepared:
        preparation = self.preparation
        samples: list[Sample] = []
        pixels: list[torch.Tensor] = []
        rejected: list[Rejected] = []
        for number in rows:
            row = self.shards.row(number)
            if row.weight == 0:
                continue  # as if the row were not in the batch: neither time nor a loss
            try:
                sample = make_sample(row, preparation.encoder)
                images = [self._pixels(data) for data in sample.images]
            except InvalidSample as problem:
                rejected.append(Rejected(number, row.id, problem.reason.value, problem.detail))
                continue
            samples.append(sample)
            pixels += images
        batch = collate(samples, pixels, preparation.pad_id)
        truncated = sum(sample.truncated for sample in samples)
        return _Prepared(batch, len(rows), rejected, truncated)

    def _pixels(self, data: bytes) -> torch.Tensor:
        """Return the pixels [3, H, W] of the image file `data`, kept while there is room."""
        pixels = self._kept.get(data)
        if pixels is None:
            pixels = self.preparation.pixels(decode_sample_image(data))
            size = len(data) + pixels.nbytes
            if size <= self.room:
                self.room -= size
                self._kept[data] = pixels
        return pixels


def _next(source: Iterator[object]) -> _Prepared | AlignError | None:
    try:
        item = next(source, None)
    except (RuntimeError, EOFError, ConnectionError) as error:
        # A dying worker shows as any of these, depending on its last activity.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AlignError(
            f"a data worker ended without a word ({reason}), as when memory runs out; set "
            "data.workers lower, and look at the size of /dev/shm in a container."
        ) from error
    assert item is None or isinstance(item, _Prepared | AlignError)
    return item


def _identity(item: object) -> object:
    return item


def _begin(loader: DataLoader[object]) -> Iterator[object]:
    """Start the workers, and restore the SIGCHLD handler replaced by torch.

    torch's would raise in the middle of a training step when a worker dies; without it, the next
    batch reports the death.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)  # torch sets no handler either
    before = signal.getsignal(signal.SIGCHLD)
    source = iter(loader)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
    return source


def _set_up_worker(_worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the trainer ends its own workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _Work):
        info.dataset.shards.reopen()
