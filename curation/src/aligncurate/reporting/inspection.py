"""Result of `inspect`, and its sections as text."""

from dataclasses import dataclass, field
from typing import Any

from aligncurate.core.moments import Moment
from aligncurate.reporting.format import bytes_text, clip_middle, count_text, score_text, share_text
from aligncurate.reporting.lineage import Ancestor
from alignshared import DuplicateInfo, LevelEdges, LevelStatistics, ModelInfo
from alignshared.schema import SCORE_COLUMN, score_column


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the shards and its Arrow type, such as `float` or `list<item: string>`."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """Content of a dataset or, if `finished` is False, of an unfinished run.

    For an unfinished run, `rows`, `rejects`, `shards` and `bytes` count the work so far, and
    `stage`, `package`, `created` and `digest` are None. `bytes` includes shards and rejects;
    `digest` is the manifest's SHA-256; `scores` is the cached summary of an earlier reader;
    `left_out` counts input pairs that the stage was configured to drop. If the first shard
    cannot be opened `columns` is empty, and with invalid edges `edges` is None; `fault` gives
    the reason.
    """

    location: str
    finished: bool
    stage: str | None
    rows: int
    rejects: dict[str, int]
    shards: int
    bytes: int
    columns: list[Column] = field(default_factory=list[Column])
    fault: str | None = None
    model: ModelInfo | None = None
    models: dict[str, ModelInfo] = field(default_factory=dict[str, ModelInfo])
    scores: Moment | None = None
    duplicates: DuplicateInfo | None = None
    edges: LevelEdges | None = None
    levels: list[LevelStatistics] = field(default_factory=list[LevelStatistics])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    lineage: list[Ancestor] = field(default_factory=list[Ancestor])
    package: str | None = None
    created: str | None = None
    digest: str | None = None
    left_out: int = 0

    @property
    def reject_count(self) -> int:
        """Number of pairs rejected, for any reason."""
        return sum(self.rejects.values())


def facts(inspection: Inspection) -> list[tuple[str, str]]:
    """The dataset as a whole: names and values for two columns."""
    model, duplicates, scores = inspection.model, inspection.duplicates, inspection.scores
    size = f"{count_text(inspection.shards, 'shard')}, {bytes_text(inspection.bytes)}"
    done = "" if inspection.finished else " so far"
    unfinished = "an unfinished run: give its command once more to resume it"
    rows = [
        ("location", inspection.location),
        ("stage", inspection.stage or "") if inspection.finished else ("state", unfinished),
        ("rows", f"{inspection.rows:,}{done}"),
        ("rejects", f"{inspection.reject_count:,}{done}"),
        *([("left out", f"{inspection.left_out:,}")] if inspection.left_out else []),
        ("shards", f"{size}{done}"),
    ]
    if duplicates:
        counts = f"{duplicates.exact:,} exact, {duplicates.near:,} near, left out"
        rows += [("duplicates", counts)]
        if search := duplicates.search:
            rows += [("near pairs found", f"{share_text(search['recall'])} ({search['method']})")]
    if model:
        rows += [
            ("model", f"{model.name}, weights {model.weights}"),
            ("precision", f"{model.precision}, {model.image_size} px"),
            ("weights SHA-256", model.weights_sha256),
            *unusual(model),
        ]
    rows += [
        (score_column(name), f"{model.name}, weights {model.weights}")
        for name, model in inspection.models.items()
    ]
    by = inspection.edges.by if inspection.edges else SCORE_COLUMN
    if scores and scores.count:
        spread = f"mean {score_text(scores.mean)}, standard deviation {score_text(scores.std)}"
        ends = f"from {score_text(scores.min)} to {score_text(scores.max)}"
        rows += [("scores" if by == SCORE_COLUMN else by, f"{spread}, {ends}")]
    if inspection.edges:
        named = "" if by == SCORE_COLUMN else f" of {by}"
        rows += [("levels", f"{inspection.edges.levels}, {inspection.edges.scheme}{named}")]
    return rows + _given(
        ("created", inspection.created),
        ("written by", inspection.package),
        ("manifest SHA-256", inspection.digest),
        ("fault", inspection.fault),
    )


def unusual(model: ModelInfo) -> list[tuple[str, str]]:
    """Non-default image and caption settings of `model`."""
    return _given(
        ("view", model.view), ("long captions", model.long_captions), ("decode", model.decode)
    )


def _given(*rows: tuple[str, str | None]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in rows if value]


def reject_rows(inspection: Inspection) -> list[tuple[str, str]]:
    """Reasons and counts, most frequent first."""
    ordered = sorted(inspection.rejects.items(), key=lambda item: (-item[1], item[0]))
    return [(reason, f"{count:,}") for reason, count in ordered]


LEVEL_HEADINGS = ("level", "from", "pairs", "share", "mean", "least", "greatest")
"""Of the table of levels; `from` is the edge below."""


def level_rows(inspection: Inspection) -> list[tuple[str, ...]]:
    """Rows of the table of levels under `LEVEL_HEADINGS`, highest first."""
    below: tuple[float | None, ...] = (None, *(inspection.edges.edges if inspection.edges else ()))
    rows: list[tuple[str, ...]] = []
    for s, edge in zip(inspection.levels, below, strict=False):
        scores = map(score_text, (s.mean, s.min, s.max))
        rows.append((str(s.level), score_text(edge), f"{s.count:,}", share_text(s.share), *scores))
    return rows[::-1]


def lineage_rows(inspection: Inspection) -> list[tuple[str, str]]:
    """Ancestors, indented by generation, with their details."""
    rows: list[tuple[str, str]] = []
    for ancestor in inspection.lineage:
        manifest, known = ancestor.manifest, ""
        if manifest:
            pairs = count_text(manifest.rows, "pair")
            rejects = count_text(manifest.reject_count, "reject")
            known = f"{manifest.stage}, {pairs}, {rejects}; "
        indent = "  " * (ancestor.generation - 1)
        location = clip_middle(ancestor.parent.location, 240)
        rows.append((f"{indent}{location}", f"{known}{ancestor.state}"))
    return rows
