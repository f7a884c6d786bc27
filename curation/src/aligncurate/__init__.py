"""Score image-text pairs with CLIP, sort them into alignment levels, report on them; ingest
instruction data.

Every command is also a function: `from aligncurate import score, bucket, report`.
"""

import typing

if typing.TYPE_CHECKING:
    from aligncurate.settings import Conditions, Execution
    from aligncurate.stages.bucket import bucket
    from aligncurate.stages.dedup import dedup
    from aligncurate.stages.export import export
    from aligncurate.stages.filter import filter
    from aligncurate.stages.ingest import ingest
    from aligncurate.stages.inspect import inspect
    from aligncurate.stages.report import report
    from aligncurate.stages.sample import sample
    from aligncurate.stages.score import score
    from aligncurate.stages.search import search
    from aligncurate.stages.validate import validate

__all__ = [
    "Conditions",
    "Execution",
    "bucket",
    "dedup",
    "export",
    "filter",
    "ingest",
    "inspect",
    "report",
    "sample",
    "score",
    "search",
    "validate",
]

_HOME = {name: f"aligncurate.stages.{name}" for name in __all__} | {
    "Conditions": "aligncurate.settings",
    "Execution": "aligncurate.settings",
}


def __getattr__(name: str) -> typing.Any:
    """Import stages on first use: torch and ray take seconds, too slow for `--help`."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
