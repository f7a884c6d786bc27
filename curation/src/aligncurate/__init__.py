"""Score image-text pairs with CLIP, sort them into alignment levels, report on them; ingest
instruction data.

Every command is also a function: `from aligncurate import score, bucket, report`.
"""

import typing

if typing.TYPE_CHECKING:
    from aligncurate.settings import Conditions as Conditions
    from aligncurate.settings import Execution as Execution
    from aligncurate.stages.bucket import bucket as bucket
    from aligncurate.stages.dedup import dedup as dedup
    from aligncurate.stages.export import export as export
    from aligncurate.stages.filter import filter as filter
    from aligncurate.stages.ingest import ingest as ingest
    from aligncurate.stages.inspect import inspect as inspect
    from aligncurate.stages.push import push as push
    from aligncurate.stages.report import report as report
    from aligncurate.stages.sample import sample as sample
    from aligncurate.stages.score import score as score
    from aligncurate.stages.search import search as search
    from aligncurate.stages.validate import validate as validate

_STAGES = (
    "bucket", "dedup", "export", "filter", "ingest", "inspect", "push", "report", "sample",
    "score", "search", "validate",
)  # fmt: skip
_HOME = {name: f"aligncurate.stages.{name}" for name in _STAGES} | {
    "Conditions": "aligncurate.settings",
    "Execution": "aligncurate.settings",
}
__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> typing.Any:
    """Import stages on first use: torch and ray take seconds, too slow for `--help`."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
