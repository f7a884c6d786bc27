"""Rows of a dataset by number, without ever holding more of it than a few row groups."""

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alignshared import ContractError, Dataset, InputError, LevelEdges, ShardInfo
from alignshared.levels import edge_ranks
from alignshared.schema import LEVEL_COLUMN, require_columns
from aligntrain.data.samples import Row
from aligntrain.prompts.conversation import Turn

Levels = npt.NDArray[np.int8]
Relevel = Callable[["Shards", int], Levels]
"""Levels [n] int8 in 1..N of all rows of a dataset, for N levels."""

CACHE_BYTES = 512 << 20
"""Row groups that a process keeps, at most; the newest is kept however large it is."""

_COLUMNS = ("id", "image", "caption", "conversations", LEVEL_COLUMN)
_HASH_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Block:
    """One row group, the least that can be read: rows `first` to `first + rows` of the dataset."""

    shard: ShardInfo
    group: int
    first: int
    rows: int


class Shards:
    """The dataset at `location`: a levelled one if `levels` is given, else any with conversations
    or captions. With `relevel` its levels are made anew, `levels` of them, and its own not read.

    It can be sent to another process, or be there after a fork: open files stay behind.

    Raises:
        InputError: there is no such dataset, its schema has another version, it is empty, lacks a
            column or a shard, or is not sorted into `levels` levels.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        levels: int | None = None,
        conversations: bool = False,
        relevel: Relevel | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.dataset = Dataset(location)
        self.location = self.dataset.location
        self.digest = self.dataset.digest
        self.levels = levels
        self.relevelled = levels is not None and relevel is not None
        if not self.dataset.manifest.rows:
            raise InputError(f"{self.location} is empty; its rejects tell why.")
        self.schema: pa.Schema = self.dataset.schema
        self._check_levels()
        wanted = ["id", "image", "conversations" if conversations else "caption"]
        require_columns(self.schema, wanted, self.location)
        self.columns = [name for name in _COLUMNS if name in self.schema.names]
        self.blocks: tuple[Block, ...] = tuple(self._blocks())
        self._firsts = [block.first for block in self.blocks]
        self._cache_bytes = cache_bytes
        self._levels = None
        if levels is not None and relevel is not None:
            self._levels = relevel(self, levels)
        self._forget()

    def __len__(self) -> int:
        last = self.blocks[-1]
        return last.first + last.rows

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_cache"], state["_open"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def row(self, number: int) -> Row:
        """Row `number`, from 0, in the order of the shards.

        Raises:
            InputError: a shard is gone or damaged since it was opened.
        """
        at = bisect_right(self._firsts, number) - 1
        block = self.blocks[at]
        if not 0 <= number - block.first < block.rows:
            raise IndexError(number)
        table = self._table(at)
        values = table.slice(number - block.first, 1).to_pylist()[0]
        if self._levels is not None:
            values[LEVEL_COLUMN] = int(self._levels[number])
        return _row(values)

    def block_batches(
        self, columns: Sequence[str]
    ) -> Iterator[tuple[int, ShardInfo, pa.RecordBatch]]:
        """Every row once, as (number of the first, shard, batch) of `columns`, which may name
        leaves such as `image.path`.
        """
        first = 0
        for shard in self.dataset.manifest.shards:
            with self.dataset.open_shard(shard) as parquet:
                for batch in parquet.iter_batches(batch_size=8192, columns=list(columns)):
                    yield first, shard, batch
                    first += batch.num_rows

    def verify(self) -> None:
        """Compare every shard with the checksum in the manifest; reads everything once.

        Raises:
            ContractError: a shard is not the one that was written.
        """
        for shard in self.dataset.manifest.shards:
            digest = hashlib.sha256()
            with self.dataset.storage.open(shard.file) as stream:
                while chunk := stream.read(_HASH_CHUNK):
                    digest.update(chunk)
            if digest.hexdigest() != shard.sha256:
                raise ContractError(
                    f"{shard.file} in {self.location} is not what its manifest lists (SHA-256 "
                    f"{digest.hexdigest()[:12]}…, not {shard.sha256[:12]}…); copy it again or "
                    "write the dataset again."
                )

    def reopen(self) -> None:
        """Forget open files and what is kept of them; the next read opens them again."""
        self._forget()

    def _forget(self) -> None:
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._open: dict[str, pq.ParquetFile] = {}

    def _check_levels(self) -> None:
        edges = self.dataset.manifest.level_edges
        if self.levels is None or self.relevelled:
            return
        remedy = f"run aligncurate bucket --levels {self.levels}"
        if edges is None:
            raise ContractError(
                f"{self.location} is not sorted into levels (its stage is "
                f"{self.dataset.manifest.stage}); {remedy} on it and train on the result."
            )
        if edges.levels != self.levels:
            raise ContractError(
                f"{self.location} has {edges.levels} levels and the recipe {self.levels}; {remedy} "
                f"on the scores again, or set model.levels to {edges.levels}."
            )
        require_columns(self.schema, [LEVEL_COLUMN], self.location)

    def _blocks(self) -> Iterator[Block]:
        first = 0
        for shard in self.dataset.manifest.shards:
            with self.dataset.open_shard(shard) as parquet:
                footer = parquet.metadata
                sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
                missing = set(self.columns) - set(parquet.schema_arrow.names)
            if sum(sizes) != shard.rows or missing:
                what = f"no column {min(missing)}" if missing else f"{sum(sizes)} rows"
                raise ContractError(
                    f"{shard.file} in {self.location} has {what}, unlike what its manifest and its "
                    "first shard say; copy it again or write the dataset again."
                )
            for group, rows in enumerate(sizes):
                yield Block(shard, group, first, rows)
                first += rows

    def _table(self, at: int) -> pa.Table:
        if at in self._cache:
            self._cache.move_to_end(at)
            return self._cache[at]
        table = self._read(self.blocks[at])
        self._cache[at] = table
        sizes = [kept.nbytes for kept in self._cache.values()]
        while sum(sizes) > self._cache_bytes and len(sizes) > 1:
            self._cache.popitem(last=False)
            sizes.pop(0)
        return table

    def _read(self, block: Block) -> pa.Table:
        name = block.shard.file
        try:
            if name not in self._open:
                if len(self._open) >= _MAX_OPEN:
                    self._open.pop(next(iter(self._open))).close()
                self._open[name] = self.dataset.open_shard(block.shard)
            # Threads of Arrow's pool would not be there after a fork.
            return self._open[name].read_row_group(
                block.group, columns=self.columns, use_threads=False
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise ContractError(
                f"{name} in {self.location} cannot be read ({' '.join(str(error).split())}); copy "
                "it again or write the dataset again."
            ) from error


_MAX_OPEN = 32
"""Shards that are kept open; a file in an object store holds a connection and a footer."""


def _row(values: dict[str, Any]) -> Row:
    image, turns = values["image"], values.get("conversations")
    return Row(
        id=values["id"],
        image=None if image is None else image["bytes"] or b"",
        caption=values.get("caption"),
        turns=tuple(Turn(str(t["from"]), t["value"] or "") for t in turns or ()),
        level=values.get(LEVEL_COLUMN),
    )


def relevel_of(how: Literal["quantile", "random"] | None, seed: int) -> Relevel | None:
    """What `data.levels` of a recipe says; `seed` is what random ones are drawn from."""
    if how == "random":
        return lambda shards, levels: random_levels(len(shards), levels, seed)
    return quantile_levels if how == "quantile" else None


def random_levels(rows: int, levels: int, seed: int) -> Levels:
    """`levels` levels in equal numbers, dealt to `rows` rows by `seed` alone."""
    dealt = np.arange(rows, dtype=np.int64) * levels // rows + 1
    return np.random.default_rng([seed, levels]).permutation(dealt).astype(np.int8)


def quantile_levels(shards: "Shards", levels: int) -> Levels:
    """Levels between the exact quantiles of the dataset's scores, as `aligncurate bucket` has them:
    edge k of N over n scores is the one with 0-based rank floor(k n / N) in ascending order.

    Raises:
        ContractError: there are no scores, or one is no finite number.
    """
    remedy = "run aligncurate score on the pairs, or leave data.levels out"
    if "score" not in shards.schema.names:
        raise ContractError(
            f"data.levels quantile needs scores, and {shards.location} has none; {remedy}."
        )
    parts = [
        batch.column("score").to_numpy(zero_copy_only=False)
        for _, _, batch in shards.block_batches(["score"])
    ]
    scores = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(scores).all():
        raise ContractError(f"{shards.location} has a score that is no finite number; {remedy}.")
    if len(scores) < levels:
        raise InputError(
            f"{shards.location} has {len(scores)} rows, too few for {levels} levels; lower "
            "model.levels."
        )
    ordered = np.sort(scores)
    edges = [float(ordered[rank]) for rank in edge_ranks(levels, len(ordered))]
    return LevelEdges(tuple(edges), "quantile").assign(scores)
