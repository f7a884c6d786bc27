"""Sampler: the rows of each global batch, a function of seed, epoch and dataset alone.

Shuffling. Reading a row reads its whole row group, so rows used together must be stored
together. Each epoch shuffles the row groups, takes about WINDOW of them at a time in that order,
shuffles their rows, and cuts batches from the result; rows that do not fill a batch go on to the
next window. With row groups of 256, a batch of 256 mixes rows of 16 row groups, and a window
takes 16 reads. Within a batch, rows stand in the order of their row groups, so that one rank's
part comes from few of them.

Grouping. With `group`, a batch holds only rows with images or only text, of similar length: the
rows of each kind in a window are sorted by length and cut into batches, and the batches are
shuffled. The last batches of an epoch mix the remaining rows of both kinds.

Batches are all full. Every row occurs at most once per epoch; fewer than a batch are left out at
its end, different ones each epoch.

Ranks. A batch is split into equal parts, one per rank, in order. The number of ranks decides
which process handles a row, never when it is used.

Random numbers are hashes of row numbers (splitmix64), independent of any library's release, so
that a run can resume after an upgrade.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from alignshared import InputError
from alignshared.hashing import GOLDEN_GAMMA, scramble
from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.index import Index

WINDOW = 16
"""Maximum row groups shuffled together."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Position:
    """Progress of a run: `step` global batches of epoch `epoch` are done."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """Row numbers [global size] of one optimizer step, and the position after it."""

    rows: Rows
    after: Position


@dataclass(eq=False)
class GlobalBatchSampler:
    """Batches of `global_size` rows, in an order drawn from `seed`.

    Args:
        rows: [n] int64, row numbers to train on, ascending.
        row_groups: [n] int64, the row group of each.
        global_size: rows in a batch.
        seed: of all shuffling.
        lengths: [n] int32, to group by length; None for no grouping.
        has_image: [n] bool, to group by modality.
        dataset: digest of the data, for saved states.

    Raises:
        InputError: there are fewer rows than a batch needs.
    """

    rows: Rows
    row_groups: Rows
    _: KW_ONLY
    global_size: int
    seed: int
    lengths: npt.NDArray[np.int32] | None = None
    has_image: npt.NDArray[np.bool_] | None = None
    dataset: str = ""
    _cached_epoch: tuple[int, Rows] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if len(self.rows) < self.global_size:
            raise InputError(
                f"there are {len(self.rows)} rows to train on and batch.global_size is "
                f"{self.global_size}; set it to {max(len(self.rows), 1)} or less, or give more "
                "data."
            )
        self._identity = {
            "dataset": self.dataset,
            "rows": len(self.rows),
            "global_size": self.global_size,
            "seed": self.seed,
            "group": self.lengths is not None,
        }

    @classmethod
    def of(
        cls,
        shards: ShardedDataset,
        index: Index,
        rows: Rows,
        *,
        global_size: int,
        seed: int,
        group: bool = False,
    ) -> "GlobalBatchSampler":
        """Return the sampler over `rows` of `shards`; `group` is data.group_by_length."""
        groups = shards.row_groups
        return cls(
            rows,
            np.repeat(np.arange(len(groups)), [group.rows for group in groups])[rows],
            global_size=global_size,
            seed=seed,
            lengths=index.lengths[rows] if group else None,
            has_image=index.has_image[rows] if group else None,
            dataset=shards.digest,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in each epoch."""
        return len(self.rows) // self.global_size

    @property
    def left_out(self) -> int:
        """Rows left out at the end of an epoch, fewer than a batch."""
        return len(self.rows) % self.global_size

    def position(self, step: int) -> Position:
        """Return the position after `step` global batches from the start."""
        return Position(*divmod(step, self.steps_per_epoch))

    def steps_to(self, position: Position) -> int:
        """Return the number of global batches before `position`."""
        return position.epoch * self.steps_per_epoch + position.step

    def epoch(self, epoch: int) -> Rows:
        """Return the row numbers [steps, global size] of all batches of an epoch."""
        if self._cached_epoch is None or self._cached_epoch[0] != epoch:
            self._cached_epoch = epoch, self.rows[self._batches(epoch)]
        return self._cached_epoch[1]

    def plan(self, start: Position, stop: Position) -> Iterator[GlobalBatch]:
        """Iterate over the global batches from `start` up to `stop`."""
        for step in range(self.steps_to(start), self.steps_to(stop)):
            before, after = self.position(step), self.position(step + 1)
            yield GlobalBatch(self.epoch(before.epoch)[before.step], after)

    def state(self, position: Position) -> dict[str, Any]:
        """Return `position` for a checkpoint, with the identity of this order."""
        return {"epoch": position.epoch, "step": position.step, "order": dict(self._identity)}

    def restore(self, state: dict[str, Any]) -> Position:
        """Return the position in `state`, of any number of ranks; InputError for another order."""
        saved = state["order"]
        for key, value in self._identity.items():
            if saved.get(key) != value:
                raise InputError(
                    f"the checkpoint stands in another order of data: {key} is {saved.get(key)!r} "
                    f"there and {value!r} here; resume with the data and recipe that it was made "
                    "with, or start a new run."
                )
        return Position(int(state["epoch"]), int(state["step"]))

    def _batches(self, epoch: int) -> Rows:
        """Return an epoch's batches as indices [steps, global size] into `rows`."""
        # [n]: place of each row's row group in this epoch's shuffled order
        group_rank = _shuffled_ranks(self.row_groups, (self.seed, epoch, 0))
        keys = _random((self.seed, epoch, 1), self.rows)
        groups = int(group_rank.max()) + 1
        window = group_rank * -(-groups // WINDOW) // groups  # windows of nearly equal size
        order = np.lexsort((keys, window))  # window by window, rows at random within
        cuts = np.flatnonzero(np.diff(window[order])) + 1
        batches: list[Rows] = []
        pools = _Pools(self.global_size, self.lengths, self.has_image)
        for number, indices in enumerate(np.split(order, cuts)):
            full = pools.add(indices)
            if self.lengths is not None:  # undo the order by length
                turn = np.argsort(_random((self.seed, epoch, 2, number), np.arange(len(full))))
                full = [full[i] for i in turn]
            batches += full
        batches += pools.rest()
        # By row group, so that a rank's part of a batch needs few of them; stable keeps the rest.
        return np.stack([b[np.argsort(group_rank[b], kind="stable")] for b in batches])


@dataclass(slots=True)
class _Pools:
    """Rows waiting for a batch: one pool, or one per modality when grouping."""

    size: int
    lengths: npt.NDArray[np.int32] | None
    has_image: npt.NDArray[np.bool_] | None
    waiting: dict[int, Rows] = field(default_factory=dict[int, Rows])

    def add(self, indices: Rows) -> list[Rows]:
        """Add the shuffled rows of one window; return the batches that are full now."""
        parts = [indices]
        if self.has_image is not None:
            images = self.has_image[indices]
            parts = [indices[images], indices[~images]]
        full: list[Rows] = []
        for modality, new in enumerate(parts):
            pool = np.concatenate([self.waiting.get(modality, new[:0]), new])
            ready = len(pool) - len(pool) % self.size
            self.waiting[modality] = pool[ready:]
            full += self._cut(pool[:ready])
        return full

    def rest(self) -> list[Rows]:
        """Return the full batches of all waiting rows; the last rows stay out."""
        pool = np.concatenate(list(self.waiting.values()))
        return self._cut(pool[: len(pool) - len(pool) % self.size])

    def _cut(self, indices: Rows) -> list[Rows]:
        if self.lengths is not None:
            indices = indices[np.argsort(self.lengths[indices], kind="stable")]
        return list(indices.reshape(-1, self.size))


def rank_part(rows: Rows, rank: int, ranks: int) -> Rows:
    """Return the part of a global batch handled by `rank` of `ranks`, in order.

    If not divisible (the last batch of a validation), the first ranks have one more.
    """
    return np.array_split(rows, ranks)[rank]


def sequential_batches(rows: Rows, global_size: int) -> Iterator[GlobalBatch]:
    """Iterate over `rows` once, in order, for validation; the last batch may be smaller."""
    for step, first in enumerate(range(0, len(rows), global_size)):
        yield GlobalBatch(rows[first : first + global_size], Position(0, step + 1))


def _shuffled_ranks(row_groups: Rows, salt: tuple[int, ...]) -> Rows:
    """Return for each row [n] the place of its row group in a shuffled order of the row groups."""
    distinct, inverse = np.unique(row_groups, return_inverse=True)
    ranks = np.empty(len(distinct), dtype=np.int64)
    ranks[np.argsort(_random(salt, distinct), kind="stable")] = np.arange(len(distinct))
    return ranks[inverse]


def _random(salt: tuple[int, ...], values: Rows) -> npt.NDArray[np.uint64]:
    """Return a random number [n] uint64 for each of `values` [n], a function of it and `salt`."""
    key = np.zeros(1, dtype=np.uint64)
    for part in salt:
        key = _mix(key + np.uint64(part % (1 << 64)))
    return _mix(values.astype(np.uint64) + key)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return splitmix64 of the values: a bijection; each bit depends on every other."""
    return scramble(values + np.uint64(GOLDEN_GAMMA))
