"""Lineage of a dataset: its parents, their parents, and so on."""

from dataclasses import dataclass

from alignshared import AlignError, Dataset, Manifest, Parent

_MOST_ANCESTORS = 64
"""Limit for cyclic manifests."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One step of lineage.

    `generation` is 1 for a parent, 2 for its parent. `dataset` is None for a source and for an
    unreadable dataset; `state` says which.
    """

    generation: int
    parent: Parent
    dataset: Dataset | None
    state: str

    @property
    def manifest(self) -> Manifest | None:
        """Manifest of a readable ancestor."""
        return self.dataset.manifest if self.dataset else None


def ancestors(dataset: Dataset) -> list[Ancestor]:
    """All ancestors of `dataset`, nearest first."""
    lineage: list[Ancestor] = []
    waiting = [(1, dataset)]
    while waiting and len(lineage) < _MOST_ANCESTORS:
        generation, child = waiting.pop(0)
        source = child.manifest.config.get("input")
        may_be_source = isinstance(source, dict) and "kind" in source
        for parent in child.manifest.parents:
            ancestor = _look_up(generation, parent, may_be_source=may_be_source)
            lineage.append(ancestor)
            if ancestor.dataset:
                waiting.append((generation + 1, ancestor.dataset))
    return lineage[:_MOST_ANCESTORS]


def _look_up(generation: int, parent: Parent, *, may_be_source: bool) -> Ancestor:
    if parent.sha256 is None:
        return Ancestor(generation, parent, None, "source")
    try:
        dataset = Dataset(parent.location)
        same = dataset.digest == parent.sha256
    except (AlignError, OSError, TypeError, ValueError):
        # It may be gone or on another machine, which is no error here.
        state = "source" if may_be_source else "not readable from here"
        return Ancestor(generation, parent, None, state)
    if not same:
        return Ancestor(generation, parent, None, "written again since")
    return Ancestor(generation, parent, dataset, "unchanged")
