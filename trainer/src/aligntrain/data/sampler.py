"""Which rows make which global batch: a function of the seed, the epoch and the dataset alone.

Shuffling. A row is read with its whole row group, so rows that are used together must lie
together. Each epoch the row groups are shuffled; about WINDOW of them, in that order, are thrown
together and their rows shuffled; the batches are cut from what comes out. With row groups of 256,
a batch of 256 so holds rows of 16 places of the dataset, and a window takes 16 reads.
What does not fill a batch goes on to the next window. Inside a batch rows lie in the order of
their row groups, so that the part of one rank comes from few of them.

Grouping. With `group`, the batches of a window hold images only or text only, of like length: the
rows of one kind are sorted by length and cut into batches, and the batches are shuffled. The last
batches of an epoch take what is left of both kinds.

Every row that fills a batch occurs once in an epoch. The last rows of an epoch, fewer than a batch,
are left out: others each time, as each epoch has another order. All batches so have the same size.

Ranks. A batch is cut into as many parts of equal size as there are ranks, in order. So the number
of ranks changes who works on a row, not when it is used.

Random numbers are hashes of row numbers (splitmix64): they do not depend on the release of a
library, so a run can be gone on with after an upgrade.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignshared import InputError
from alignshared.hashing import GOLDEN_GAMMA, scramble
from aligntrain.data.dataset import Shards
from aligntrain.data.index import Index

WINDOW = 16
"""Row groups whose rows are shuffled together, at most."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: so many global batches of epoch `epoch` are done."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """The rows [global size] of one step of the optimizer, and where the run stands after it."""

    rows: Rows
    after: Position


class Order:
    """The order of `rows` (ascending numbers) in batches of `global_size`, from `seed`.

    `blocks` [n] is the row group of each row, `lengths` [n] and `has_image` [n] what to group by;
    `dataset` names the data in saved states.

    Raises:
        InputError: there are fewer rows than a batch takes.
    """

    def __init__(
        self,
        rows: Rows,
        blocks: Rows,
        *,
        global_size: int,
        seed: int,
        lengths: npt.NDArray[np.int32] | None = None,
        has_image: npt.NDArray[np.bool_] | None = None,
        dataset: str = "",
    ) -> None:
        if len(rows) < global_size:
            raise InputError(
                f"there are {len(rows)} rows to train on and batch.global_size is {global_size}; "
                f"set it to {max(len(rows), 1)} or less, or give more data."
            )
        self._rows, self._blocks = rows, blocks
        self._lengths, self._has_image = lengths, has_image
        self.global_size = global_size
        self._identity = {
            "dataset": dataset,
            "rows": len(rows),
            "global_size": global_size,
            "seed": seed,
            "group": lengths is not None,
        }
        self._seed = seed
        self._known: tuple[int, Rows] | None = None

    @classmethod
    def of(
        cls,
        shards: Shards,
        index: Index,
        rows: Rows,
        *,
        global_size: int,
        seed: int,
        group: bool = False,
    ) -> "Order":
        """The order of `rows` of `shards`; `group` is data.group_by_length."""
        return cls(
            rows,
            block_numbers(shards)[rows],
            global_size=global_size,
            seed=seed,
            lengths=index.lengths[rows] if group else None,
            has_image=index.has_image[rows] if group else None,
            dataset=shards.digest,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, the same in each."""
        return len(self._rows) // self.global_size

    @property
    def left_out(self) -> int:
        """Rows that an epoch leaves out at its end, fewer than a batch."""
        return len(self._rows) % self.global_size

    def position(self, step: int) -> Position:
        """Where a run stands after `step` global batches from its start."""
        return Position(*divmod(step, self.steps_per_epoch))

    def steps_to(self, position: Position) -> int:
        """How many global batches lie before `position`."""
        return position.epoch * self.steps_per_epoch + position.step

    def epoch(self, epoch: int) -> Rows:
        """Row numbers [steps, global size] of all batches of an epoch."""
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self._rows[self._batches(epoch)]
        return self._known[1]

    def plan(self, start: Position, stop: Position) -> Iterator[GlobalBatch]:
        """The global batches from `start` up to `stop`."""
        for step in range(self.steps_to(start), self.steps_to(stop)):
            at = self.position(step)
            yield GlobalBatch(self.epoch(at.epoch)[at.step], self.position(step + 1))

    def state(self, position: Position) -> dict[str, Any]:
        """`position` for a checkpoint, with what it is a position in."""
        return {"epoch": position.epoch, "step": position.step, "order": dict(self._identity)}

    def restore(self, state: dict[str, Any]) -> Position:
        """The position in `state`, which may come from a run with another number of ranks.

        Raises:
            InputError: it is a position in another order.
        """
        there = state["order"]
        for key, ours in self._identity.items():
            if there.get(key) != ours:
                raise InputError(
                    f"the checkpoint stands in another order of data: {key} is {there.get(key)!r} "
                    f"there and {ours!r} here; resume with the data and recipe that it was made "
                    "with, or start a new run."
                )
        return Position(int(state["epoch"]), int(state["step"]))

    def _batches(self, epoch: int) -> Rows:
        """Places in `rows` [steps, global size] of an epoch's batches."""
        rank_of_block = _shuffled_ranks(self._blocks, (self._seed, epoch, 0))
        keys = _random((self._seed, epoch, 1), self._rows)
        blocks = int(rank_of_block.max()) + 1
        window = rank_of_block * -(-blocks // WINDOW) // blocks  # of nearly equal size
        places = np.lexsort((keys, window))
        cuts = np.flatnonzero(np.diff(window[places])) + 1
        batches: list[Rows] = []
        pools = _Pools(self.global_size, self._lengths, self._has_image)
        for number, part in enumerate(np.split(places, cuts)):
            full = pools.add(part)
            if self._lengths is not None:  # they lie by length
                turn = np.argsort(_random((self._seed, epoch, 2, number), np.arange(len(full))))
                full = [full[at] for at in turn]
            batches += full
        batches += pools.rest()
        # By row group, and among equals by chance.
        return np.stack([b[np.argsort(rank_of_block[b], kind="stable")] for b in batches])


class _Pools:
    """Rows that wait for a batch: one pool, or one of each kind when they are grouped."""

    def __init__(
        self,
        size: int,
        lengths: npt.NDArray[np.int32] | None,
        has_image: npt.NDArray[np.bool_] | None,
    ) -> None:
        self._size = size
        self._lengths = lengths
        self._has_image = has_image
        self._waiting: list[Rows] = [np.empty(0, np.int64)] * (1 if has_image is None else 2)

    def add(self, places: Rows) -> list[Rows]:
        """Take the shuffled rows of one window; the batches that are now full."""
        kinds = [places]
        if self._has_image is not None:
            images = self._has_image[places]
            kinds = [places[images], places[~images]]
        full: list[Rows] = []
        for kind, new in enumerate(kinds):
            pool = np.concatenate([self._waiting[kind], new])
            ready = len(pool) - len(pool) % self._size
            self._waiting[kind] = pool[ready:]
            full += self._cut(pool[:ready])
        return full

    def rest(self) -> list[Rows]:
        """The batches that what still waits fills together; the last rows stay out."""
        pool = np.concatenate(self._waiting)
        return self._cut(pool[: len(pool) - len(pool) % self._size])

    def _cut(self, places: Rows) -> list[Rows]:
        if self._lengths is not None:
            places = places[np.argsort(self._lengths[places], kind="stable")]
        return list(places.reshape(-1, self._size))


def block_numbers(shards: Shards) -> Rows:
    """The row group [n] of each row of `shards`."""
    return np.repeat(np.arange(len(shards.blocks)), [block.rows for block in shards.blocks])


def rank_part(rows: Rows, rank: int, ranks: int) -> Rows:
    """The rows of a global batch that are rank `rank`'s, of `ranks`: its part, in order.

    Where the number does not divide (the last batch of a validation), first ranks have one more.
    """
    return np.array_split(rows, ranks)[rank]


def in_turn(rows: Rows, global_size: int) -> Iterator[GlobalBatch]:
    """All of `rows` in their order, once, for validation; the last batch may be smaller."""
    for step, first in enumerate(range(0, len(rows), global_size)):
        yield GlobalBatch(rows[first : first + global_size], Position(0, step + 1))


def _shuffled_ranks(blocks: Rows, salt: tuple[int, ...]) -> Rows:
    """For each row, the place of its row group in a shuffled order of the row groups."""
    distinct, inverse = np.unique(blocks, return_inverse=True)
    ranks = np.empty(len(distinct), dtype=np.int64)
    ranks[np.argsort(_random(salt, distinct), kind="stable")] = np.arange(len(distinct))
    return ranks[inverse]


def _random(salt: tuple[int, ...], values: Rows) -> npt.NDArray[np.uint64]:
    """A random number [n] uint64 for each of `values` [n], other ones for another `salt`."""
    key = np.zeros(1, dtype=np.uint64)
    for part in salt:
        key = _mix(key + np.uint64(part % (1 << 64)))
    return _mix(values.astype(np.uint64) + key)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64: a bijection; each bit depends on every other."""
    return scramble(values + np.uint64(GOLDEN_GAMMA))
