"""The data contract between aligncurate and aligntrain."""

import typing

if typing.TYPE_CHECKING:
    from alignshared.dataset import Dataset as Dataset
    from alignshared.errors import AlignError as AlignError
    from alignshared.errors import ContractError as ContractError
    from alignshared.errors import InputError as InputError
    from alignshared.levels import LevelEdges as LevelEdges
    from alignshared.levels import LevelStatistics as LevelStatistics
    from alignshared.manifest import DuplicateInfo as DuplicateInfo
    from alignshared.manifest import Manifest as Manifest
    from alignshared.manifest import ModelInfo as ModelInfo
    from alignshared.manifest import Parent as Parent
    from alignshared.rejects import Reason as Reason
    from alignshared.rejects import Reject as Reject
    from alignshared.shards import ShardInfo as ShardInfo
    from alignshared.stores.options import StorageOptions as StorageOptions
    from alignshared.stores.options import use_storage_options as use_storage_options
    from alignshared.stores.storage import Storage as Storage

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
__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> typing.Any:
    """Import names on first use: pyarrow takes a third of a second, too slow for `--help`."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
