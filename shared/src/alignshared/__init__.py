"""The data contract between aligncurate and aligntrain."""

from alignshared.dataset import Dataset
from alignshared.errors import AlignError, ContractError, InputError
from alignshared.levels import LevelEdges, LevelStatistics
from alignshared.manifest import Manifest, ModelInfo, Parent
from alignshared.rejects import Reason, Reject
from alignshared.shards import ShardInfo
from alignshared.storage import Storage

__all__ = [
    "AlignError",
    "ContractError",
    "Dataset",
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
]
