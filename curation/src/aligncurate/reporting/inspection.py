"""Result of `inspect`, and its sections as text."""

from dataclasses import dataclass, field
from typing import Any

from aligncurate.core.moments import Moment
from aligncurate.reporting.format import (
    bytes_text,
    clip_middle,
    count_text,
    flat_config,
    score_text,
    share_text,
)
from aligncurate.reporting.lineage import Ancestor
from alignshared import DuplicateInfo, LevelEdges, LevelStatistics, ModelInfo
from alignshared.schema import score_column


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
    rows = [("location", inspection.location)]
    if inspection.finished:
        rows += [("stage", inspection.stage or "")]
    else:
        rows += [("state", "an unfinished run: give its command once more to go on with it")]
    done = "" if inspection.finished else " so far"
    size = f"{count_text(inspection.shards, 'shard')}, {bytes_text(inspection.bytes)}"
    rows += [
        ("rows", f"{inspection.rows:,}{done}"),
        ("rejects", f"{inspection.reject_count:,}{done}"),
        *([("left out", f"{inspection.left_out:,}")] if inspection.left_out else []),
        ("shards", f"{size}{done}"),
    ]
    if inspection.duplicates:
        counts = (
            f"{inspection.duplicates.exact:,} exact, {inspection.duplicates.near:,} near, left out"
        )
        rows += [("duplicates", counts)]
        search = inspection.duplicates.search
        if search:
            rows += [("near pairs found", f"{share_text(search['recall'])} ({search['method']})")]
    if inspection.model:
        rows += [
            ("model", f"{inspection.model.name}, weights {inspection.model.weights}"),
            ("precision", f"{inspection.model.precision}, {inspection.model.image_size} px"),
            ("weights SHA-256", inspection.model.weights_sha256),
        ]
        rows += unusual(inspection.model)
    rows += [
        (score_column(name), f"{model.name}, weights {model.weights}")
        for name, model in inspection.models.items()
    ]
    if inspection.scores and inspection.scores.count:
        s = inspection.scores
        rows += [
            (
                "scores",
                f"mean {score_text(s.mean)}, standard deviation {score_text(s.std)}, from "
                f"{score_text(s.min)} to {score_text(s.max)}",
            )
        ]
    if inspection.edges:
        rows += [("levels", f"{inspection.edges.levels}, {inspection.edges.scheme}")]
    optional = (
        ("created", inspection.created),
        ("written by", inspection.package),
        ("manifest SHA-256", inspection.digest),
        ("fault", inspection.fault),
    )
    return rows + [(name, value) for name, value in optional if value]


def unusual(model: ModelInfo) -> list[tuple[str, str]]:
    """Non-default image and caption settings of `model`."""
    optional = (
        ("view", model.view),
        ("long captions", model.long_captions),
        ("decode", model.decode),
    )
    return [(name, value) for name, value in optional if value]


def reject_rows(inspection: Inspection) -> list[tuple[str, str]]:
    """Reasons and counts, most frequent first."""
    ordered = sorted(inspection.rejects.items(), key=lambda item: (-item[1], item[0]))
    return [(reason, f"{count:,}") for reason, count in ordered]


LEVEL_HEADINGS = ("level", "from", "pairs", "share", "mean", "least", "greatest")


def level_rows(inspection: Inspection) -> list[tuple[str, ...]]:
    """Rows of the table of levels under `LEVEL_HEADINGS`, highest first; `from` is the edge
    below.
    """
    below: tuple[float | None, ...] = (None, *(inspection.edges.edges if inspection.edges else ()))
    rows = [
        (
            str(s.level),
            score_text(edge),
            f"{s.count:,}",
            share_text(s.share),
            score_text(s.mean),
            score_text(s.min),
            score_text(s.max),
        )
        for s, edge in zip(inspection.levels, below, strict=False)
    ]
    return rows[::-1]


def lineage_rows(inspection: Inspection) -> list[tuple[str, str]]:
    """Ancestors, indented by generation, with their details."""
    rows: list[tuple[str, str]] = []
    for ancestor in inspection.lineage:
        manifest = ancestor.manifest
        known = (
            f"{manifest.stage}, {count_text(manifest.rows, 'pair')}, "
            f"{count_text(manifest.reject_count, 'reject')}; "
            if manifest
            else ""
        )
        indent = "  " * (ancestor.generation - 1)
        location = clip_middle(ancestor.parent.location, 240)
        rows.append((f"{indent}{location}", f"{known}{ancestor.state}"))
    return rows


def config_rows(inspection: Inspection) -> list[tuple[str, str]]:
    """Configuration of the run as dotted names and values."""
    return flat_config(inspection.config)
