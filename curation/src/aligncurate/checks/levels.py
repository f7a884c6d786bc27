"""Consistency of the levels in the manifest, `levels.json` and the rows."""

from dataclasses import asdict
from math import isclose
from typing import Any

from aligncurate.checks.problems import Kind, Problem, written_wrongly
from alignshared import Dataset, InputError, LevelEdges, LevelStatistics
from alignshared.levels import levels_to_json
from alignshared.manifest import LEVELS_FILE
from alignshared.schema import SCORE_COLUMN

_RELATIVE = 1e-6
"""Tolerance of a mean against a recount in another order of summation."""


def edges_of(dataset: Dataset) -> tuple[LevelEdges | None, list[Problem]]:
    """Edges between the levels; None without levels or with invalid edges."""
    manifest = dataset.manifest
    if manifest.edges is None and manifest.stage != "bucket":
        return None, []
    if manifest.edges is None or manifest.scheme is None or manifest.level_statistics is None:
        return None, [_of_manifest("has not all of edges, scheme and level_statistics")]
    if manifest.scheme not in ("quantile", "equal-width"):
        return None, [_of_manifest(f"names an unknown scheme, {manifest.scheme!r}")]
    try:
        by = manifest.by or SCORE_COLUMN
        edges = LevelEdges(tuple(float(edge) for edge in manifest.edges), manifest.scheme, by)
    except (InputError, OverflowError) as error:
        return None, [_of_manifest(f"has edges that cannot be ({str(error).rstrip('.')})")]
    levels = [statistics.level for statistics in manifest.level_statistics]
    if levels != list(range(1, edges.levels + 1)):
        text = f"describes other levels than the {edges.levels} that its edges make"
        return edges, [_of_manifest(text)]
    return edges, []


def _of_manifest(what: str) -> Problem:
    return written_wrongly(Kind.LEVELS, f"the manifest {what}")


def check_statistics(
    listed: list[LevelStatistics], counted: list[LevelStatistics]
) -> list[Problem]:
    """Problems where the manifest's statistics differ from `counted`, those of all rows."""
    problems: list[Problem] = []
    for statistics, recounted in zip(listed, counted, strict=False):
        for name, value in asdict(statistics).items():
            recount = getattr(recounted, name)
            if not _agree(name, value, recount):
                text = f"says that the {name} of level {statistics.level} is {value}"
                problems.append(_of_manifest(f"{text}, but the rows say {recount}"))
    return problems


def _agree(name: str, listed: float | None, counted: float | None) -> bool:
    if listed is None or counted is None or name not in ("mean", "share"):
        return listed == counted
    return isclose(listed, counted, rel_tol=_RELATIVE, abs_tol=1e-9)


def check_levels_file(dataset: Dataset, edges: LevelEdges) -> list[Problem]:
    """Problems with `levels.json`: missing, or different from the manifest."""
    expected = levels_to_json(edges, dataset.manifest.level_statistics or [])
    try:
        if not dataset.storage.exists(LEVELS_FILE):
            missing = dataset.manifest.stage == "bucket"
            faults = ["is missing, which a bucket run writes"] if missing else []
        else:
            faults = _differences(dataset.storage.read_json(LEVELS_FILE), expected)
    except (InputError, OSError) as error:
        faults = [f"cannot be read: {str(error).rstrip('.')}"]
    return [written_wrongly(Kind.LEVELS, f"{LEVELS_FILE} {fault}") for fault in faults]


def _differences(content: Any, expected: dict[str, Any]) -> list[str]:
    if not isinstance(content, dict) or content.keys() != expected.keys():
        return [f"has other fields than {', '.join(expected)}"]
    return [
        f"and the manifest differ in {name}"
        for name, value in expected.items()
        if content[name] != value
    ]
