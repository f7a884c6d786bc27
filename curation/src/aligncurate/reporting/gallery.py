"""Example pairs with their pictures: the rows of a shortlist, read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from aligncurate.reporting.shortlist import Shortlist, kinds_of
from alignshared import Dataset

_PICTURE_ROWS = 16
"""Rows whose pictures are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Example:
    """One chosen pair; `caption`, `image` and `path` are filled in when its row is read."""

    id: str
    score: float
    caption: str = ""
    image: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Examples under one heading, the highest score first; `level` is None without levels."""

    title: str
    level: int | None
    examples: list[Example]


def read_examples(dataset: Dataset, shortlist: Shortlist, examples: int) -> list[Group]:
    """The first `examples` pairs of each kind on the `shortlist` of `dataset`, with captions and
    pictures.
    """
    picked = [picks[:examples] for picks in shortlist.picks]
    wanted = {(pick.shard, pick.row) for picks in picked for pick in picks}
    rows = dict(_read_rows(dataset, wanted))
    groups = []
    for kind, picks in zip(kinds_of(dataset.manifest), picked, strict=True):
        found = [_filled(Example(p.id, p.score), rows[p.shard, p.row]) for p in picks]
        found.sort(key=lambda example: (-example.score, example.id))
        groups.append(Group(kind.title, kind.level, found))
    return groups


def _filled(example: Example, row: dict[str, object]) -> Example:
    image = row.get("image")
    data, path = (
        (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
    )
    return replace(example, caption=row.get("caption") or "", image=data, path=path)


def _read_rows(
    dataset: Dataset, wanted: set[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], dict[str, object]]]:
    """The caption and picture of each wanted (shard, row), reading only the row groups they are
    in.
    """
    for index in sorted({shard for shard, _ in wanted}):
        rows = sorted(row for shard, row in wanted if shard == index)
        with dataset.open_shard(dataset.manifest.shards[index]) as parquet:
            columns = [c for c in ("caption", "image") if c in parquet.schema_arrow.names]
            begin = 0
            for group in range(parquet.num_row_groups):
                end = begin + parquet.metadata.row_group(group).num_rows
                inside = [row - begin for row in rows if begin <= row < end]
                if inside:
                    for row, values in _rows_of_group(parquet, group, columns, inside):
                        yield (index, begin + row), values
                begin = end


def _rows_of_group(
    parquet: pq.ParquetFile, group: int, columns: list[str], rows: list[int]
) -> Iterator[tuple[int, dict[str, object]]]:
    begin = 0
    batches = parquet.iter_batches(batch_size=_PICTURE_ROWS, row_groups=[group], columns=columns)
    for batch in batches:
        for row in rows:
            if begin <= row < begin + batch.num_rows:
                yield row, batch.slice(row - begin, 1).to_pylist()[0]
        begin += batch.num_rows
        if begin > rows[-1]:
            return
