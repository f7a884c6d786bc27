"""Example pairs with images, read from the rows of a shortlist."""

from dataclasses import dataclass, replace

from aligncurate.reporting.rows import read_rows
from aligncurate.reporting.shortlist import Shortlist, kinds_of
from alignshared import Dataset


@dataclass(frozen=True, slots=True)
class Example:
    """An example pair; `caption`, `image` and `path` are set once its row is read."""

    id: str
    score: float
    caption: str = ""
    image: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Examples under one heading, highest score first; `level` is None without levels."""

    title: str
    level: int | None
    examples: list[Example]


def read_examples(dataset: Dataset, shortlist: Shortlist, examples: int) -> list[Group]:
    """Read the first `examples` pairs of each kind on the `shortlist` of `dataset`, with captions
    and images.
    """
    picked = [picks[:examples] for picks in shortlist.picks]
    positions = {(pick.shard, pick.row) for picks in picked for pick in picks}
    rows = dict(read_rows(dataset, positions, ("caption", "image")))
    groups = []
    for kind, picks in zip(kinds_of(dataset.manifest), picked, strict=True):
        group = [_filled(Example(p.id, p.score), rows[p.shard, p.row]) for p in picks]
        group.sort(key=lambda example: (-example.score, example.id))
        groups.append(Group(kind.title, kind.level, group))
    return groups


def _filled(example: Example, row: dict[str, object]) -> Example:
    image = row.get("image")
    data, path = (
        (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
    )
    return replace(example, caption=row.get("caption") or "", image=data, path=path)
