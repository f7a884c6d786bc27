"""Rows of a dataset by number, with few row groups in memory and optionally recomputed levels."""

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from alignshared import ContractError, Dataset, InputError, LevelEdges, ShardInfo
from alignshared.images import ImageError, decode_image
from alignshared.levels import edge_ranks
from alignshared.schema import LEVEL_COLUMN, require_columns
from aligntrain.prompts.conversation import InvalidSample, Reason, Turn
from aligntrain.recipes import Recipe
from aligntrain.recipes.schema import COLUMN_PREFIX
from aligntrain.runs.folder import required_levels

Levels = npt.NDArray[np.int8]
Relevel = Callable[["ShardedDataset", int], Levels]
"""Function from a dataset and N to the levels [n] int8, in 1..N, of all its rows."""

CACHE_BYTES = 512 << 20
"""Maximum bytes of row groups cached by a process; the newest is kept whatever its size."""

_MAX_OPEN = 32
"""Maximum open shards; in an object store each holds a connection and a footer."""

_COLUMNS = ("id", "image", "caption", "conversations", LEVEL_COLUMN)


@dataclass(frozen=True, slots=True)
class Row:
    """Row as stored in a shard.

    `image` is None for text alone and b"" if the shard holds only a path; `turns` is empty without
    a conversation, `level` None without levels, `weight` of the loss None without weights.
    """

    id: str
    image: bytes | None
    caption: str | None
    turns: tuple[Turn, ...]
    level: int | None
    weight: float | None = None

    @classmethod
    def of(cls, values: dict[str, Any], weight: float | None = None) -> "Row":
        """Return the row with these values of a shard's columns."""
        image, turns = values["image"], values.get("conversations")
        return cls(
            id=values["id"],
            image=None if image is None else image["bytes"] or b"",
            caption=values.get("caption"),
            turns=tuple(Turn(str(t["from"]), t["value"] or "") for t in turns or ()),
            level=values.get(LEVEL_COLUMN),
            weight=weight,
        )


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group, the smallest readable unit: rows `first` to `first + rows` of the dataset."""

    shard: ShardInfo
    group: int
    first: int
    rows: int


class ShardedDataset:
    """Random access to the rows of the dataset at `location`.

    `levels` is the required number of levels, None for a dataset of captions or, with
    `conversations`, of conversations. `relevel` recomputes levels instead of reading the
    dataset's own. `weight` is a column of loss weights. Open files are dropped on pickling and
    forking.

    Raises:
        InputError: there is no such dataset, its schema has another version, it is empty, lacks a
            column or a shard, is not sorted into `levels` levels, or has a weight that is none.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        levels: int | None = None,
        conversations: bool = False,
        relevel: Relevel | None = None,
        weight: str | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.dataset = Dataset(location)
        self.location = self.dataset.location
        self.digest = self.dataset.digest
        self.levels = levels
        self.relevelled = levels is not None and relevel is not None
        self.weight = weight
        if not self.dataset.manifest.rows:
            raise InputError(f"{self.location} is empty; its rejects tell why.")
        self.schema: pa.Schema = self.dataset.schema
        self._check_levels()
        required = ["id", "image", "conversations" if conversations else "caption"]
        required += [] if weight is None else [weight]
        require_columns(self.schema, required, self.location)
        self.columns = [name for name in _COLUMNS if name in self.schema.names]
        self.columns += [] if weight is None or weight in self.columns else [weight]
        self.row_groups: tuple[RowGroup, ...] = tuple(self._read_footers())
        self._firsts = [row_group.first for row_group in self.row_groups]
        self._cache_bytes = cache_bytes
        self._levels = None if levels is None or relevel is None else relevel(self, levels)
        if weight is not None:
            check_weights(self, weight)
        self.reopen()

    def __len__(self) -> int:
        last = self.row_groups[-1]
        return last.first + last.rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in self.__dict__.items() if name not in ("_cache", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reopen()

    def row(self, number: int) -> Row:
        """Return row `number`, from 0 in shard order; InputError if its shard is missing or bad."""
        index = bisect_right(self._firsts, number) - 1
        row_group = self.row_groups[index]
        if not 0 <= number - row_group.first < row_group.rows:
            raise IndexError(number)
        table = self._table(index)
        values = table.slice(number - row_group.first, 1).to_pylist()[0]
        weight = None if self.weight is None else float(values[self.weight])
        if self._levels is not None:
            values[LEVEL_COLUMN] = int(self._levels[number])
        return Row.of(values, weight)

    def iter_batches(
        self, columns: Sequence[str]
    ) -> Iterator[tuple[int, ShardInfo, pa.RecordBatch]]:
        """Iterate over (first row, shard, batch) of `columns`, leaves such as `image.path` too."""
        first = 0
        for shard in self.dataset.manifest.shards:
            with self.dataset.open_shard(shard) as parquet:
                for batch in parquet.iter_batches(batch_size=8192, columns=list(columns)):
                    yield first, shard, batch
                    first += batch.num_rows

    def verify(self) -> None:
        """Compare every shard with its checksum, reading all data; ContractError if one differs."""
        for shard in self.dataset.manifest.shards:
            with self.dataset.storage.open(shard.file) as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != shard.sha256:
                raise ContractError(
                    f"{shard.file} in {self.location} is not what its manifest lists (SHA-256 "
                    f"{digest[:12]}…, not {shard.sha256[:12]}…); copy it again or "
                    "write the dataset again."
                )

    def reopen(self) -> None:
        """Drop open files and cached row groups; the next read opens them again."""
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._open: dict[str, pq.ParquetFile] = {}

    def _check_levels(self) -> None:
        if self.levels is None or self.relevelled:
            return
        edges = self.dataset.manifest.level_edges
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

    def _read_footers(self) -> Iterator[RowGroup]:
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
                yield RowGroup(shard, group, first, rows)
                first += rows

    def _table(self, index: int) -> pa.Table:
        """Return a row group from the cache, evicting the least recently used."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        table = self._read(self.row_groups[index])
        self._cache[index] = table
        sizes = [cached.nbytes for cached in self._cache.values()]
        while sum(sizes) > self._cache_bytes and len(sizes) > 1:
            self._cache.popitem(last=False)
            sizes.pop(0)
        return table

    def _read(self, row_group: RowGroup) -> pa.Table:
        name = row_group.shard.file
        try:
            if name not in self._open:
                if len(self._open) >= _MAX_OPEN:
                    self._open.pop(next(iter(self._open))).close()
                self._open[name] = self.dataset.open_shard(row_group.shard)
            # The threads of Arrow's pool do not survive a fork.
            return self._open[name].read_row_group(
                row_group.group, columns=self.columns, use_threads=False
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise ContractError(
                f"{name} in {self.location} cannot be read ({' '.join(str(error).split())}); copy "
                "it again or write the dataset again."
            ) from error


def decode_sample_image(data: bytes) -> Image.Image:
    """Decode the image file `data` to RGB; raise InvalidSample if it cannot be decoded."""
    try:
        return decode_image(data)
    except ImageError as error:
        raise InvalidSample(
            Reason.CORRUPT_IMAGE, f"{error.reason.value}: {error.detail}"
        ) from error


def open_dataset(recipe: Recipe, location: str | os.PathLike[str]) -> ShardedDataset:
    """Return the dataset at `location` as read by a run of `recipe`."""
    return ShardedDataset(
        location,
        levels=required_levels(recipe),
        conversations=recipe.data.template != "plain",
        relevel=relevel_of(recipe.data.levels, recipe.seed),
        weight=recipe.data.weight,
    )


def relevel_of(how: str | None, seed: int) -> Relevel | None:
    """Return the function for a recipe's `data.levels`; `seed` draws random levels."""
    if how == "random":
        return lambda shards, levels: random_levels(len(shards), levels, seed)
    if how is not None and how.startswith(COLUMN_PREFIX):
        name = how.removeprefix(COLUMN_PREFIX)
        return lambda shards, levels: column_levels(shards, levels, name)
    return quantile_levels if how == "quantile" else None


def random_levels(rows: int, levels: int, seed: int) -> Levels:
    """Return levels [rows] in equal numbers, dealt by `seed` alone."""
    dealt = np.arange(rows, dtype=np.int64) * levels // rows + 1
    return np.random.default_rng([seed, levels]).permutation(dealt).astype(np.int8)


def quantile_levels(shards: "ShardedDataset", levels: int) -> Levels:
    """Return levels between the exact quantiles of the dataset's scores, as `aligncurate bucket`.

    Edge k of N over n scores is the score of 0-based rank floor(k n / N) in ascending order.

    Raises:
        ContractError: there are no scores, or one is not finite.
    """
    remedy = "run aligncurate score on the pairs, or leave data.levels out"
    if "score" not in shards.schema.names:
        raise ContractError(
            f"data.levels quantile needs scores, and {shards.location} has none; {remedy}."
        )
    batches = (batch for _, _, batch in shards.iter_batches(["score"]))
    columns = [batch.column("score").to_numpy(zero_copy_only=False) for batch in batches]
    scores = np.concatenate(columns).astype(np.float32)
    if not np.isfinite(scores).all():
        raise ContractError(f"{shards.location} has a score that is no finite number; {remedy}.")
    if len(scores) < levels:
        raise InputError(
            f"{shards.location} has {len(scores)} rows, too few for {levels} levels; lower "
            "model.levels."
        )
    edges = np.sort(scores)[edge_ranks(levels, len(scores))]
    return LevelEdges(tuple(edges.tolist()), "quantile").assign(scores)


def column_levels(shards: "ShardedDataset", levels: int, name: str) -> Levels:
    """Return the levels in the column `name`, 0 in rows without an image.

    Raises:
        ContractError: there is no such column, or it is not of integers in 1..`levels`.
    """
    found = np.zeros(len(shards), dtype=np.int8)
    require_columns(shards.schema, [name], shards.location)
    for first, shard, batch in shards.iter_batches([*{"id", name}, "image.path"]):
        column = batch.column(name)
        if not pa.types.is_integer(column.type):
            raise ContractError(
                f"data.levels column:{name} needs integers, and the column {name} of "
                f"{shards.location} is of type {column.type}; name another column."
            )
        values = column.fill_null(0).to_numpy(zero_copy_only=False)
        has_image = batch.column("image").is_valid().to_numpy(zero_copy_only=False)
        if len(wrong := np.flatnonzero(has_image & ~((values >= 1) & (values <= levels)))):
            raise ContractError(
                f"{_told(batch, wrong[0], name)} in {shard.file} of {shards.location}, which is no "
                f"level in 1..{levels}; mend the column, or set model.levels to the number of its "
                "levels."
            )
        found[first : first + len(values)] = np.where(has_image, values, 0)
    return found


def check_weights(shards: "ShardedDataset", name: str) -> None:
    """Check that the column `name` holds weights: finite, not negative, and not all 0.

    Raises:
        ContractError: it does not.
    """
    total = 0.0
    for _, shard, batch in shards.iter_batches([*{"id", name}]):
        column = batch.column(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise ContractError(
                f"data.weight {name} needs numbers, and the column {name} of {shards.location} is "
                f"of type {column.type}; name another column."
            )
        values = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)  # null is NaN
        if len(wrong := np.flatnonzero(~(np.isfinite(values) & (values >= 0)))):
            raise ContractError(
                f"{_told(batch, wrong[0], name)} in {shard.file} of {shards.location}, which is no "
                "weight; give each row a finite number of at least 0."
            )
        total += float(values.sum(dtype=np.float64))
    if total == 0:
        raise ContractError(
            f"all weights in the column {name} of {shards.location} are 0, so there is nothing to "
            "learn; name another column."
        )


def _told(batch: pa.RecordBatch, row: int, name: str) -> str:
    """Tell the id of `row` of `batch` and its value in the column `name`."""
    id_, value = (batch.column(column)[int(row)].as_py() for column in ("id", name))
    return f"{id_} has the {name} {'null' if value is None else value}"
