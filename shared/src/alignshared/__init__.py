"""The data contract between aligncurate and aligntrain."""

import typing

if typing.TYPE_CHECKING:
    from alignshared.dataset import Dataset
    from alignshared.errors import AlignError, ContractError, InputError
    from alignshared.levels import LevelEdges, LevelStatistics
    from alignshared.manifest import DuplicateInfo, Manifest, ModelInfo, Parent
    from alignshared.rejects import Reason, Reject
    from alignshared.shards import ShardInfo
    from alignshared.stores.options import StorageOptions, use_storage_options
    from alignshared.stores.storage import Storage

__all__ = [
    "AlignError",
    "ContractError",
    "Dataset",
    "DuplicateInfo",
    "InputError",
    "LevelEdges",
    "LevelStatistics",
    "Manifest",
    "ModelInfo",
    "Parent",
    "Reason",
    "Reject",
    "ShardInfo",
    "Storage",
    "StorageOptions",
    "use_storage_options",
]

_HOME = {
    name: module
    for module, names in {
        "dataset": ("Dataset",),
        "errors": ("AlignError", "ContractError", "InputError"),
        "levels": ("LevelEdges", "LevelStatistics"),
        "manifest": ("DuplicateInfo", "Manifest", "ModelInfo", "Parent"),
        "rejects": ("Reason", "Reject"),
        "shards": ("ShardInfo",),
        "stores.options": ("StorageOptions", "use_storage_options"),
        "stores.storage": ("Storage",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> typing.Any:
    """Import names on first use: pyarrow takes a third of a second, too slow for `--help`."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
