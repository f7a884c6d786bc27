"""Rows that a report shows: example pairs with images, and rejects."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aligncurate.reporting.shortlist import Shortlist, kinds_of
from alignshared import Dataset
from alignshared.shards import row_groups

_IMAGE_ROWS = 16
"""Number of rows whose images are in memory at a time."""

_REJECT_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Example:
    """An example pair; `image` and `path` are None if the dataset does not have them."""

    id: str
    score: float
    caption: str
    image: bytes | None
    path: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """Examples under one heading, highest score first; `level` is None without levels."""

    title: str
    level: int | None
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class RejectedFor:
    """Rejects of one stage for one reason; `examples` are rows of REJECT_SCHEMA."""

    stage: str
    reason: str
    count: int
    examples: list[dict[str, str | None]]


def read_rows(
    dataset: Dataset, positions: Collection[tuple[int, int]], columns: Sequence[str]
) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """Read the existing `columns` of each wanted (shard, row), from only the row groups needed."""
    for index in sorted({shard for shard, _ in positions}):
        rows = sorted(row for shard, row in positions if shard == index)
        with dataset.open_shard(dataset.manifest.shards[index]) as parquet:
            names = [name for name in columns if name in parquet.schema_arrow.names]
            for group, begin, end in row_groups(parquet):
                inside = [row for row in rows if begin <= row < end]
                if not inside:
                    continue
                for batch in parquet.iter_batches(_IMAGE_ROWS, row_groups=[group], columns=names):
                    for row in inside:
                        if begin <= row < begin + batch.num_rows:
                            yield (index, row), batch.slice(row - begin, 1).to_pylist()[0]
                    begin += batch.num_rows
                    if begin > inside[-1]:
                        break


def read_examples(dataset: Dataset, shortlist: Shortlist, examples: int) -> list[Group]:
    """Read the first `examples` pairs of each kind on the `shortlist` of `dataset`."""
    picked = [picks[:examples] for picks in shortlist.picks]
    positions = {(pick.shard, pick.row) for picks in picked for pick in picks}
    rows = dict(read_rows(dataset, positions, ("caption", "image")))
    groups: list[Group] = []
    for kind, picks in zip(kinds_of(dataset.manifest), picked, strict=True):
        group: list[Example] = []
        for pick in picks:
            row = rows[pick.shard, pick.row]
            image, caption = row.get("image") or {}, row.get("caption") or ""
            path = image.get("path")
            group.append(Example(pick.id, pick.score, caption, image.get("bytes"), path))
        group.sort(key=lambda example: (-example.score, example.id))
        groups.append(Group(kind.title, kind.level, group))
    return groups


def rejected(dataset: Dataset, examples: int) -> list[RejectedFor]:
    """Rejects of `dataset`, most frequent reason first, with up to `examples` of each.

    The files are read only as far as needed.
    """
    manifest = dataset.manifest
    examples_of: dict[str, list[dict[str, str | None]]] = defaultdict(list)
    missing = {reason: min(examples, count) for reason, count in manifest.rejects.items()}
    for row in _reject_rows(dataset):
        if missing.get(row["reason"], 0) > 0:
            missing[row["reason"]] -= 1
            examples_of[row["reason"]].append(row)
        if not any(missing.values()):
            break
    return [
        RejectedFor(manifest.stage, reason, count, examples_of[reason])
        for reason, count in sorted(manifest.rejects.items(), key=lambda item: (-item[1], item[0]))
    ]


def _reject_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for shard in dataset.manifest.reject_shards:
        with dataset.open_shard(shard) as parquet:
            for batch in parquet.iter_batches(batch_size=_REJECT_ROWS):
                yield from batch.to_pylist()
